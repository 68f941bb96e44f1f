variable "name" {
  description = "What the roles' names begin with."
  type        = string
}

variable "bucket_arns" {
  description = "ARN of each bucket: store, reference, artifacts."
  type        = map(string)
}

variable "kms_key_arn" {
  description = "The key under which the buckets are encrypted."
  type        = string
}

variable "oidc_provider_arn" {
  description = "ARN of the cluster's identity provider."
  type        = string
}

variable "oidc_issuer" {
  description = "The provider's issuer without https://."
  type        = string
}
