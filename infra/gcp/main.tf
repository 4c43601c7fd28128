# The Keyturn functions on GCP: one that rotates when Secret Manager asks for
# it, one that retires what was superseded. docs/gcp.md explains each part.
#
#   terraform apply -var project=my-project -var region=europe-west1 \
#     -var rotate_image=... -var retire_image=... -var 'secrets=["orders-app"]' -var master=orders-master

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

variable "rotate_image" {
  type        = string
  description = "Container image of functions/gcp/rotate."
}

variable "retire_image" {
  type        = string
  description = "Container image of functions/gcp/retire."
}

variable "secrets" {
  type        = set(string)
  description = "Ids of the secrets to rotate, which exist already."
}

variable "master" {
  type        = string
  default     = ""
  description = "Id of the secret whose user changes the others; empty for the single strategy."
}

variable "rotator" {
  type    = string
  default = "postgres-alternating"
}

variable "apikey" {
  type        = string
  default     = ""
  description = "JSON of the issuer's configuration, for the rotator apikey."
}

variable "ca_secret" {
  type        = string
  default     = ""
  description = "Id of a secret that holds the PEM of the database's authority; empty for the system's authorities."
}

variable "gate_after" {
  type        = string
  default     = "24h"
  description = "How long a superseded credential stays usable."
}

variable "sweep" {
  type        = string
  default     = "*/15 * * * *"
  description = "When superseded credentials are looked at."
}

variable "network" {
  type        = string
  default     = ""
  description = "VPC network from which the database can be reached; empty for none."
}

variable "subnetwork" {
  type    = string
  default = ""
}

provider "google" {
  project = var.project
  region  = var.region
}

data "google_project" "this" {}

locals {
  agent = "serviceAccount:service-${data.google_project.this.number}@gcp-sa-secretmanager.iam.gserviceaccount.com"
  queue = "serviceAccount:service-${data.google_project.this.number}@gcp-sa-pubsub.iam.gserviceaccount.com"
  env = merge({
    KEYTURN_ROTATOR    = var.rotator
    KEYTURN_SECRETS    = join(" ", [for s in var.secrets : "gcp://${var.project}/${s}"])
    KEYTURN_PROJECTS   = "${var.project}=${data.google_project.this.number}"
    KEYTURN_GATE_AFTER = var.gate_after
    },
    var.master == "" ? {} : { KEYTURN_MASTER = "gcp://${var.project}/${var.master}" },
    var.apikey == "" ? {} : { KEYTURN_APIKEY = var.apikey },
    var.ca_secret == "" ? {} : { KEYTURN_CA_FILE = "/etc/keyturn/ca.pem" },
  )
  # Each function has an identity of its own.
  functions = { rotate = var.rotate_image, retire = var.retire_image }
  grants    = { for p in setproduct(keys(local.functions), var.secrets) : "${p[0]}/${p[1]}" => { function = p[0], secret = p[1] } }
}

resource "google_service_account" "function" {
  for_each   = local.functions
  account_id = "keyturn-${each.key}"
}

resource "google_service_account" "invoker" {
  account_id = "keyturn-invoker"
}

# What a rotation does to a secret, and no more: it neither makes nor deletes one.
resource "google_project_iam_custom_role" "rotator" {
  role_id = "keyturnRotator"
  title   = "Keyturn rotator"
  permissions = [
    "secretmanager.secrets.get", "secretmanager.secrets.update",
    "secretmanager.versions.get", "secretmanager.versions.list", "secretmanager.versions.access", "secretmanager.versions.add",
    "secretmanager.versions.enable", "secretmanager.versions.disable", "secretmanager.versions.destroy",
  ]
}

# The pending version is kept beside the secret. Made here, so that the
# functions need no right to make secrets, and no permission on the project:
# with permissions on secrets alone, one that is not there is denied, and the
# functions could not tell that it is missing. It is replicated and encrypted as
# its secret is, and has neither topics nor a rotation time.
data "google_secret_manager_secret" "main" {
  for_each  = var.secrets
  secret_id = each.key
}

resource "google_secret_manager_secret" "pending" {
  for_each  = data.google_secret_manager_secret.main
  secret_id = "${each.key}--pending"
  replication {
    dynamic "auto" {
      for_each = length(each.value.replication[0].user_managed) == 0 ? [each.value.replication[0].auto] : []
      content {
        dynamic "customer_managed_encryption" {
          for_each = try(auto.value[0].customer_managed_encryption, [])
          content {
            kms_key_name = customer_managed_encryption.value.kms_key_name
          }
        }
      }
    }
    dynamic "user_managed" {
      for_each = each.value.replication[0].user_managed
      content {
        dynamic "replicas" {
          for_each = user_managed.value.replicas
          content {
            location = replicas.value.location
            dynamic "customer_managed_encryption" {
              for_each = replicas.value.customer_managed_encryption
              content {
                kms_key_name = customer_managed_encryption.value.kms_key_name
              }
            }
          }
        }
      }
    }
  }
  lifecycle {
    ignore_changes = [annotations, labels, version_aliases]
  }
}

resource "google_secret_manager_secret_iam_member" "main" {
  for_each  = local.grants
  secret_id = each.value.secret
  role      = google_project_iam_custom_role.rotator.id
  member    = google_service_account.function[each.value.function].member
}

resource "google_secret_manager_secret_iam_member" "pending" {
  for_each  = local.grants
  secret_id = google_secret_manager_secret.pending[each.value.secret].secret_id
  role      = google_project_iam_custom_role.rotator.id
  member    = google_service_account.function[each.value.function].member
}

resource "google_secret_manager_secret_iam_member" "read" {
  for_each = { for p in setproduct(keys(local.functions), compact([var.master, var.ca_secret])) : "${p[0]}/${p[1]}" => { function = p[0], secret = p[1] } }

  secret_id = each.value.secret
  role      = "roles/secretmanager.secretAccessor"
  member    = google_service_account.function[each.value.function].member
}

resource "google_cloud_run_v2_service" "function" {
  for_each = local.functions
  name     = "keyturn-${each.key}"
  location = var.region
  ingress  = "INGRESS_TRAFFIC_INTERNAL_ONLY"
  template {
    service_account = google_service_account.function[each.key].email
    timeout         = "300s"
    # A rotation is slow, and rotations of one secret wait for one another.
    max_instance_request_concurrency = 8
    scaling {
      max_instance_count = 2
    }
    containers {
      image = each.value
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
        for_each = var.ca_secret == "" ? [] : [1]
        content {
          name       = "ca"
          mount_path = "/etc/keyturn"
        }
      }
    }
    dynamic "volumes" {
      for_each = var.ca_secret == "" ? [] : [1]
      content {
        name = "ca"
        secret {
          secret = var.ca_secret
          items {
            path    = "ca.pem"
            version = "latest"
          }
        }
      }
    }
    dynamic "vpc_access" {
      for_each = var.network == "" ? [] : [1]
      content {
        egress = "PRIVATE_RANGES_ONLY"
        network_interfaces {
          network    = var.network
          subnetwork = var.subnetwork
        }
      }
    }
  }
}

resource "google_cloud_run_v2_service_iam_member" "invoker" {
  for_each = local.functions
  name     = google_cloud_run_v2_service.function[each.key].name
  location = var.region
  role     = "roles/run.invoker"
  member   = google_service_account.invoker.member
}

# Secret Manager publishes here; name it in the topics of each secret.
resource "google_pubsub_topic" "secrets" {
  name = "keyturn-secrets"
}

resource "google_pubsub_topic_iam_member" "publisher" {
  topic  = google_pubsub_topic.secrets.name
  role   = "roles/pubsub.publisher"
  member = local.agent
}

resource "google_pubsub_topic" "dead" {
  name = "keyturn-secrets-dead"
}

resource "google_pubsub_subscription" "dead" {
  name                       = "keyturn-secrets-dead"
  topic                      = google_pubsub_topic.dead.id
  message_retention_duration = "604800s"
  expiration_policy {
    ttl = ""
  }
}

resource "google_pubsub_topic_iam_member" "dead" {
  topic  = google_pubsub_topic.dead.name
  role   = "roles/pubsub.publisher"
  member = local.queue
}

resource "google_pubsub_subscription_iam_member" "dead" {
  subscription = google_pubsub_subscription.rotate.name
  role         = "roles/pubsub.subscriber"
  member       = local.queue
}

resource "google_pubsub_subscription" "rotate" {
  name  = "keyturn-rotate"
  topic = google_pubsub_topic.secrets.id
  # The function takes every message; this saves the calls for the others.
  filter               = "attributes.eventType = \"SECRET_ROTATE\""
  ack_deadline_seconds = 300
  push_config {
    push_endpoint = google_cloud_run_v2_service.function["rotate"].uri
    oidc_token {
      service_account_email = google_service_account.invoker.email
      audience              = google_cloud_run_v2_service.function["rotate"].uri
    }
  }
  retry_policy {
    minimum_backoff = "10s"
    maximum_backoff = "600s"
  }
  dead_letter_policy {
    dead_letter_topic     = google_pubsub_topic.dead.id
    max_delivery_attempts = 100
  }
  expiration_policy {
    ttl = ""
  }
}

resource "google_cloud_scheduler_job" "retire" {
  name             = "keyturn-retire"
  region           = var.region
  schedule         = var.sweep
  attempt_deadline = "300s"
  retry_config {
    retry_count = 2
  }
  http_target {
    http_method = "POST"
    uri         = google_cloud_run_v2_service.function["retire"].uri
    oidc_token {
      service_account_email = google_service_account.invoker.email
      audience              = google_cloud_run_v2_service.function["retire"].uri
    }
  }
}

output "topic" {
  description = "For the topics of each secret."
  value       = google_pubsub_topic.secrets.id
}
