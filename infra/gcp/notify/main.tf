# The Keyturn service that publishes on NATS what Secret Manager says about
# secrets: its subscription, its identity and who may call it. docs/gcp.md
# explains it. The topic is that of infra/gcp/main.tf, or another that is named in
# the topics of the secrets.
#
#   terraform apply -var project=my-project -var region=europe-west1 -var image=... \
#     -var topic=keyturn-secrets -var nats_url=tls://nats.internal:4222 -var creds_secret=nats-notify \
#     -var network=default -var subnetwork=default -var tenant=acme

terraform {
  required_version = ">= 1.5"
  required_providers {
    google = {
      source  = "hashicorp/google"
      version = ">= 6.0"
    }
  }
}

variable "project" { type = string }
variable "region" { type = string }

variable "image" {
  type        = string
  description = "Container image of functions/gcp/notify."
}

variable "topic" {
  type        = string
  description = "Name of the topic on which Secret Manager publishes."
}

variable "nats_url" {
  type        = string
  description = "tls://HOST:PORT, or several of one cluster, separated by commas."
}

variable "creds_secret" {
  type        = string
  description = "Id of the secret that holds the credentials of NATS, as keyturn tenants creds writes them."
}

variable "ca_secret" {
  type        = string
  default     = ""
  description = "Id of a secret that holds the PEM of the authority of NATS; empty for the system's authorities."
}

variable "tenant" {
  type        = string
  default     = ""
  description = "The tenant of every secret; empty for tenants."
}

variable "tenants" {
  type        = string
  default     = ""
  description = "Rules for tenants, as JSON; with neither of the two all goes to the quarantine."
}

variable "network" {
  type        = string
  description = "VPC network from which NATS can be reached."
}

variable "subnetwork" { type = string }

provider "google" {
  project = var.project
  region  = var.region
}

data "google_project" "this" {}

locals {
  env = merge({
    KEYTURN_NATS_URL        = var.nats_url
    KEYTURN_NATS_CREDS_FILE = "/etc/keyturn/creds/nats.creds"
    KEYTURN_PROJECTS        = "${var.project}=${data.google_project.this.number}"
    },
    var.tenant == "" ? {} : { KEYTURN_TENANT = var.tenant },
    var.tenants == "" ? {} : { KEYTURN_TENANTS = var.tenants },
    var.ca_secret == "" ? {} : { KEYTURN_CA_FILE = "/etc/keyturn/ca/ca.pem" },
  )
  # The secrets that are mounted, by directory: the id and the file's name.
  mounts = merge(
    { creds = { secret = var.creds_secret, file = "nats.creds" } },
    var.ca_secret == "" ? {} : { ca = { secret = var.ca_secret, file = "ca.pem" } },
  )
}

# It may read what it is mounted, and none of the secrets that it tells of.
resource "google_service_account" "notify" {
  account_id = "keyturn-notify"
}

resource "google_secret_manager_secret_iam_member" "mounted" {
  for_each  = local.mounts
  secret_id = each.value.secret
  role      = "roles/secretmanager.secretAccessor"
  member    = google_service_account.notify.member
}

resource "google_service_account" "invoker" {
  account_id = "keyturn-notify-invoker"
}

resource "google_cloud_run_v2_service" "notify" {
  name       = "keyturn-notify"
  location   = var.region
  ingress    = "INGRESS_TRAFFIC_INTERNAL_ONLY"
  depends_on = [google_secret_manager_secret_iam_member.mounted]
  template {
    service_account                  = google_service_account.notify.email
    timeout                          = "30s"
    max_instance_request_concurrency = 80
    scaling {
      max_instance_count = 3
    }
    containers {
      image = var.image
      resources {
        limits = { cpu = "1", memory = "256Mi" }
      }
      dynamic "env" {
        for_each = local.env
        content {
          name  = env.key
          value = env.value
        }
      }
      dynamic "volume_mounts" {
        for_each = local.mounts
        content {
          name       = volume_mounts.key
          mount_path = "/etc/keyturn/${volume_mounts.key}"
        }
      }
    }
    dynamic "volumes" {
      for_each = local.mounts
      content {
        name = volumes.key
        secret {
          secret = volumes.value.secret
          items {
            path    = volumes.value.file
            version = "latest"
          }
        }
      }
    }
    vpc_access {
      egress = "PRIVATE_RANGES_ONLY"
      network_interfaces {
        network    = var.network
        subnetwork = var.subnetwork
      }
    }
  }
}

# The service checks no caller: Cloud Run lets in this one and nobody else.
resource "google_cloud_run_v2_service_iam_member" "invoker" {
  name     = google_cloud_run_v2_service.notify.name
  location = var.region
  role     = "roles/run.invoker"
  member   = google_service_account.invoker.member
}

# There is no dead-letter topic: what can never be understood is parked by the
# service, and the rest waits for as long as the subscription keeps it.
resource "google_pubsub_subscription" "notify" {
  name                       = "keyturn-notify"
  topic                      = var.topic
  ack_deadline_seconds       = 30
  message_retention_duration = "604800s"
  push_config {
    push_endpoint = google_cloud_run_v2_service.notify.uri
    oidc_token {
      service_account_email = google_service_account.invoker.email
      audience              = google_cloud_run_v2_service.notify.uri
    }
  }
  retry_policy {
    minimum_backoff = "10s"
    maximum_backoff = "600s"
  }
  expiration_policy {
    ttl = ""
  }
}
