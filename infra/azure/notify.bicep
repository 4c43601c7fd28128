// The Keyturn function that publishes on NATS what Key Vault says about secrets:
// its app, its subscription and its permissions. docs/azure.md explains it.
//
//   az deployment group create -g rg-agents -f infra/azure/notify.bicep \
//     -p vaultName=kv-agents topicName=TOPIC credsSecret=nats-notify natsUrl=tls://nats.internal:4222 \
//        subnetId=... tenant=acme

@description('Key Vault in this resource group, with role-based access control, that holds credsSecret.')
param vaultName string

@description('Event Grid system topic of the vault whose secrets are told of, in this resource group; main.bicep makes one, and a vault has one.')
param topicName string

@description('Name of the secret that holds the credentials of NATS, as keyturn tenants creds writes them.')
param credsSecret string

@description('tls://HOST:PORT, or several of one cluster, separated by commas.')
param natsUrl string

@description('Path in the package of the PEM of the authority of NATS, such as /home/site/wwwroot/ca.pem; empty for the system\'s authorities.')
param caFile string = ''

@description('The tenant of every secret; empty for tenants.')
param tenant string = ''

@description('Rules for tenants, as JSON; with neither of the two all goes to the quarantine.')
param tenants string = ''

@description('Subnet, delegated to Microsoft.Web/serverFarms, from which NATS can be reached.')
param subnetId string

@description('False at first: the subscription needs the function, so upload the package, and deploy again with true.')
param subscribe bool = false

param location string = resourceGroup().location
param prefix string = 'ktnotify${uniqueString(resourceGroup().id)}'

// Roles of Azure: Key Vault Secrets User, Storage Blob Data Owner and Contributor.
var secretsUser = '4633458b-17de-408a-b874-0445c86b69e6'
var blobOwner = 'b7e6dc6d-f1e8-4753-8033-0f276bb0955b'
var blobContributor = 'ba92f5b4-2d11-453d-a403-e96b0029c9fe'

resource vault 'Microsoft.KeyVault/vaults@2023-07-01' existing = {
  name: vaultName
}

resource creds 'Microsoft.KeyVault/vaults/secrets@2023-07-01' existing = {
  parent: vault
  name: credsSecret
}

resource topic 'Microsoft.EventGrid/systemTopics@2024-06-01-preview' existing = {
  name: topicName
}

resource storage 'Microsoft.Storage/storageAccounts@2023-05-01' = {
  name: take(replace(prefix, '-', ''), 24)
  location: location
  kind: 'StorageV2'
  sku: { name: 'Standard_LRS' }
  properties: {
    allowBlobPublicAccess: false
    allowSharedKeyAccess: false
    minimumTlsVersion: 'TLS1_2'
  }
}

resource blobs 'Microsoft.Storage/storageAccounts/blobServices@2023-05-01' = {
  parent: storage
  name: 'default'
}

resource packages 'Microsoft.Storage/storageAccounts/blobServices/containers@2023-05-01' = {
  parent: blobs
  name: 'packages'
}

resource dead 'Microsoft.Storage/storageAccounts/blobServices/containers@2023-05-01' = {
  parent: blobs
  name: 'dead-letters'
}

resource plan 'Microsoft.Web/serverfarms@2024-04-01' = {
  name: prefix
  location: location
  kind: 'elastic'
  sku: { tier: 'ElasticPremium', name: 'EP1' }
  properties: { reserved: true, maximumElasticWorkerCount: 3 }
}

resource app 'Microsoft.Web/sites@2024-04-01' = {
  name: prefix
  location: location
  kind: 'functionapp,linux'
  identity: { type: 'SystemAssigned' }
  properties: {
    serverFarmId: plan.id
    httpsOnly: true
    virtualNetworkSubnetId: subnetId
    siteConfig: {
      functionAppScaleLimit: 3
      minimumElasticInstanceCount: 1
      minTlsVersion: '1.2'
      ftpsState: 'Disabled'
      appSettings: [
        { name: 'FUNCTIONS_EXTENSION_VERSION', value: '~4' }
        { name: 'FUNCTIONS_WORKER_RUNTIME', value: 'custom' }
        { name: 'AzureWebJobsStorage__accountName', value: storage.name }
        { name: 'WEBSITE_RUN_FROM_PACKAGE', value: '${storage.properties.primaryEndpoints.blob}${packages.name}/notify.zip' }
        { name: 'WEBSITE_RUN_FROM_PACKAGE_BLOB_MI_RESOURCE_ID', value: 'SystemAssigned' }
        { name: 'KEYTURN_NATS_URL', value: natsUrl }
        // Read by the platform, with the app's identity, and again when the
        // secret has a new version.
        { name: 'KEYTURN_NATS_CREDS', value: '@Microsoft.KeyVault(VaultName=${vaultName};SecretName=${credsSecret})' }
        { name: 'KEYTURN_CA_FILE', value: caFile }
        { name: 'KEYTURN_TENANT', value: tenant }
        { name: 'KEYTURN_TENANTS', value: tenants }
      ]
    }
  }
}

resource own 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(storage.id, app.id, blobOwner)
  scope: storage
  properties: {
    principalId: app.identity.principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', blobOwner)
  }
}

// On the one secret: the function may read none of those that it tells of.
resource read 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(creds.id, app.id, secretsUser)
  scope: creds
  properties: {
    principalId: app.identity.principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', secretsUser)
  }
}

resource notices 'Microsoft.EventGrid/systemTopics/eventSubscriptions@2024-06-01-preview' = if (subscribe) {
  parent: topic
  name: 'keyturn-notify'
  dependsOn: [park]
  properties: {
    eventDeliverySchema: 'CloudEventSchemaV1_0'
    filter: {
      includedEventTypes: [
        'Microsoft.KeyVault.SecretNewVersionCreated'
        'Microsoft.KeyVault.SecretNearExpiry'
        'Microsoft.KeyVault.SecretExpired'
      ]
    }
    destination: {
      endpointType: 'AzureFunction'
      properties: {
        resourceId: '${app.id}/functions/notify'
        maxEventsPerBatch: 1
      }
    }
    retryPolicy: { eventTimeToLiveInMinutes: 1440, maxDeliveryAttempts: 30 }
    // What is not delivered in 24 hours is kept.
    deadLetterWithResourceIdentity: {
      identity: { type: 'SystemAssigned' }
      deadLetterDestination: {
        endpointType: 'StorageBlob'
        properties: { resourceId: storage.id, blobContainerName: dead.name }
      }
    }
  }
}

// The topic must have an identity, as that of main.bicep has.
resource park 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (subscribe) {
  name: guid(storage.id, topic.id, blobContributor)
  scope: storage
  properties: {
    principalId: topic.identity.principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', blobContributor)
  }
}

output storage string = storage.name
output app string = app.name
