output "role_arns" {
  value = { for zone, role in aws_iam_role.zone : zone => role.arn }
}
