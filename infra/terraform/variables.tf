variable "bucket" {
  description = "Name of the bucket for catalogs, images, training data and adapters. EZIGEN_ROOT_URI is s3://NAME."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$", var.bucket))
    error_message = "A bucket's name has 3 to 63 lower-case letters, digits and hyphens."
  }
}

variable "oidc_provider_arn" {
  description = "ARN of the OIDC provider of the Kubernetes cluster (EKS)."
  type        = string
}

variable "oidc_issuer" {
  description = "Issuer of that provider, without https://."
  type        = string

  validation {
    condition     = !startswith(var.oidc_issuer, "https://")
    error_message = "Leave out https://."
  }
}

variable "namespace" {
  description = "Kubernetes namespace of the runs."
  type        = string
  default     = "ezigen"
}

variable "service_accounts" {
  description = "Kubernetes service accounts that runs have: the driver's and the Ray nodes', and the Ray head's."
  type        = list(string)
  default     = ["ezigen-runs", "ezigen-ray-head"]
}

variable "reader_arns" {
  description = "Principals that may take the role which reads finished images and nothing else. Empty: no such role."
  type        = list(string)
  default     = []
}

variable "noncurrent_days" {
  description = "Days after which replaced and deleted objects are gone for good."
  type        = number
  default     = 30

  validation {
    condition     = var.noncurrent_days >= 1
    error_message = "At least one day."
  }
}

variable "tags" {
  description = "Tags of every resource."
  type        = map(string)
  default     = { project = "ezigen" }
}
