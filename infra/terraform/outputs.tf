output "root_uri" {
  description = "EZIGEN_ROOT_URI of the settings."
  value       = "s3://${aws_s3_bucket.this.bucket}"
}

output "runs_role_arn" {
  description = "For the annotation of the service accounts (overlays/gpu/service-accounts.yaml)."
  value       = aws_iam_role.runs.arn
}

output "readers_role_arn" {
  description = "The role that reads finished images; null without reader_arns."
  value       = one(aws_iam_role.readers[*].arn)
}
