output "arns" {
  value = { for key, bucket in aws_s3_bucket.this : key => bucket.arn }
}

output "names" {
  value = { for key, bucket in aws_s3_bucket.this : key => bucket.bucket }
}

output "kms_key_arn" {
  value = aws_kms_key.this.arn
}
