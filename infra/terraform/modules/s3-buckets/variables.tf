variable "name" {
  description = "What the buckets' names begin with."
  type        = string
}

variable "lock_mode" {
  description = "GOVERNANCE or COMPLIANCE."
  type        = string
}

variable "lock_days" {
  description = "Days for which no version of an object in the store can be removed."
  type        = number
}

variable "administrators" {
  description = "ARNs that the bucket policies do not bind."
  type        = list(string)
}
