output "store" {
  description = "VETGATE_STORE"
  value       = "s3://${module.buckets.names["store"]}"
}

output "data_remote" {
  description = "VETGATE_DATA_REMOTE"
  value       = "s3://${module.buckets.names["reference"]}/data"
}

output "artifacts" {
  description = "MLFLOW_DEFAULT_ARTIFACT_ROOT"
  value       = "s3://${module.buckets.names["artifacts"]}/mlflow"
}

output "roles" {
  description = "ARN of each zone's role, for the annotation eks.amazonaws.com/role-arn of its service account."
  value       = module.iam.role_arns
}
