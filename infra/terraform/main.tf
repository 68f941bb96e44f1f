# Buckets and roles of one installation. The provider, its region and the state's backend are the caller's.

module "buckets" {
  source = "./modules/s3-buckets"

  name           = var.name
  lock_mode      = var.lock_mode
  lock_days      = var.lock_days
  administrators = var.administrators
}

module "iam" {
  source = "./modules/iam"

  name              = var.name
  bucket_arns       = module.buckets.arns
  kms_key_arn       = module.buckets.kms_key_arn
  oidc_provider_arn = var.oidc_provider_arn
  oidc_issuer       = var.oidc_issuer
}
