locals {
  # What runs only read, and what they write. infra/prefect.yaml has the same folders.
  read_prefixes  = ["catalogs", "data", "models"]
  write_prefixes = ["outputs", "pairs", "features", "training", "adapters", "evaluations"]
}

# ---- runs: the driver and the nodes of Ray

data "aws_iam_policy_document" "runs_trust" {
  statement {
    actions = ["sts:AssumeRoleWithWebIdentity"]

    principals {
      type        = "Federated"
      identifiers = [var.oidc_provider_arn]
    }

    condition {
      test     = "StringEquals"
      variable = "${var.oidc_issuer}:aud"
      values   = ["sts.amazonaws.com"]
    }

    condition {
      test     = "StringEquals"
      variable = "${var.oidc_issuer}:sub"
      values   = [for account in var.service_accounts : "system:serviceaccount:${var.namespace}:${account}"]
    }
  }
}

data "aws_iam_policy_document" "runs" {
  statement {
    sid       = "List"
    actions   = ["s3:ListBucket"]
    resources = [aws_s3_bucket.this.arn]

    condition {
      test     = "StringLike"
      variable = "s3:prefix"
      values = flatten([
        for prefix in concat(local.read_prefixes, local.write_prefixes) : [prefix, "${prefix}/*"]
      ])
    }
  }

  statement {
    sid     = "Read"
    actions = ["s3:GetObject"]
    resources = [
      for prefix in concat(local.read_prefixes, local.write_prefixes) : "${aws_s3_bucket.this.arn}/${prefix}/*"
    ]
  }

  # PutObject covers conditional puts (If-None-Match; If-Match together with GetObject) and the parts of large ones.
  # Without DeleteObjectVersion: what a run deletes can be brought back.
  statement {
    sid       = "Write"
    actions   = ["s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"]
    resources = [for prefix in local.write_prefixes : "${aws_s3_bucket.this.arn}/${prefix}/*"]
  }

  statement {
    sid       = "Key"
    actions   = ["kms:Decrypt", "kms:GenerateDataKey"]
    resources = [aws_kms_key.bucket.arn]

    condition {
      test     = "StringEquals"
      variable = "kms:ViaService"
      values   = ["s3.${data.aws_region.current.name}.amazonaws.com"]
    }
  }
}

data "aws_region" "current" {}

resource "aws_iam_role" "runs" {
  name                 = "${var.bucket}-runs"
  assume_role_policy   = data.aws_iam_policy_document.runs_trust.json
  max_session_duration = 43200
  tags                 = var.tags
}

resource "aws_iam_role_policy" "runs" {
  name   = "bucket"
  role   = aws_iam_role.runs.id
  policy = data.aws_iam_policy_document.runs.json
}

# ---- readers: whoever shows the images

data "aws_iam_policy_document" "readers_trust" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "AWS"
      identifiers = var.reader_arns
    }
  }
}

data "aws_iam_policy_document" "readers" {
  statement {
    sid       = "List"
    actions   = ["s3:ListBucket"]
    resources = [aws_s3_bucket.this.arn]

    condition {
      test     = "StringLike"
      variable = "s3:prefix"
      values   = ["outputs", "outputs/*"]
    }
  }

  statement {
    sid       = "Read"
    actions   = ["s3:GetObject"]
    resources = ["${aws_s3_bucket.this.arn}/outputs/*"]
  }

  statement {
    sid       = "Key"
    actions   = ["kms:Decrypt"]
    resources = [aws_kms_key.bucket.arn]

    condition {
      test     = "StringEquals"
      variable = "kms:ViaService"
      values   = ["s3.${data.aws_region.current.name}.amazonaws.com"]
    }
  }
}

resource "aws_iam_role" "readers" {
  count              = length(var.reader_arns) > 0 ? 1 : 0
  name               = "${var.bucket}-readers"
  assume_role_policy = data.aws_iam_policy_document.readers_trust.json
  tags               = var.tags
}

resource "aws_iam_role_policy" "readers" {
  count  = length(var.reader_arns) > 0 ? 1 : 0
  name   = "images"
  role   = aws_iam_role.readers[0].id
  policy = data.aws_iam_policy_document.readers.json
}
