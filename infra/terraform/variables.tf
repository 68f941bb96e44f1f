variable "name" {
  description = "What the names of buckets and roles begin with."
  type        = string
  default     = "vetgate"

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{1,40}$", var.name))
    error_message = "expected 2 to 41 small letters, digits and hyphens; bucket names allow nothing else"
  }
}

variable "lock_mode" {
  description = "GOVERNANCE: administrators may shorten the lock. COMPLIANCE: nobody may, not even the account's root."
  type        = string
  default     = "GOVERNANCE"

  validation {
    condition     = contains(["GOVERNANCE", "COMPLIANCE"], var.lock_mode)
    error_message = "expected GOVERNANCE or COMPLIANCE"
  }
}

variable "lock_days" {
  description = "For how long no version of an object in the store can be removed; at least as long as verdicts are valid."
  type        = number
  default     = 90

  validation {
    condition     = var.lock_days >= 30
    error_message = "expected at least 30 days, the validity of a verdict in the shipped policy"
  }
}

variable "administrators" {
  description = "ARNs of the roles that may change, and after the lock remove, what is in the buckets."
  type        = list(string)

  validation {
    condition     = length(var.administrators) > 0
    error_message = "expected at least one administrator; without one nobody could ever correct the bucket policy"
  }
}

variable "oidc_provider_arn" {
  description = "ARN of the cluster's identity provider, whose service accounts take on the roles."
  type        = string
}

variable "oidc_issuer" {
  description = "The provider's issuer without https://."
  type        = string
}
