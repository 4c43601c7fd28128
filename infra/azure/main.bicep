// The Keyturn functions on Azure: one that rotates when Key Vault says that a
// secret is near its expiry, one that retires what was superseded.
// docs/azure.md explains each part.
//
//   az deployment group create -g rg-agents -f infra/azure/main.bicep \
//     -p vaultName=kv-agents secrets='azure://kv-agents/orders-app'

@description('Key Vault in this resource group, with role-based access control.')
param vaultName string

@description('Refs of the secrets, separated by blanks.')
param secrets string

@description('Ref of the secret whose user changes the others; empty for the single strategy.')
param master string = ''

@allowed(['postgres-single', 'postgres-alternating', 'apikey'])
param rotator string = 'postgres-alternating'

@description('JSON of the issuer\'s configuration, for the rotator apikey.')
param apikey string = ''

@description('How long a superseded credential stays usable.')
param gateAfter string = '24h'

@description('How long a new version is valid; empty for as long as the one before.')
param validity string = ''

@description('Subnet, delegated to Microsoft.Web/serverFarms, from which the database can be reached; empty for none.')
param subnetId string = ''

@description('False at first: the subscription needs the function, so upload the packages, and deploy again with true.')
param subscribe bool = false

param location string = resourceGroup().location
param prefix string = 'keyturn${uniqueString(resourceGroup().id)}'

var functions = ['rotate', 'retire']
// Roles of Azure: Key Vault Secrets Officer, Storage Blob Data Owner and Contributor.
var secretsOfficer = 'b86a8fe4-44ce-4948-aee5-eccb2c155cd7'
var blobOwner = 'b7e6dc6d-f1e8-4753-8033-0f276bb0955b'
var blobContributor = 'ba92f5b4-2d11-453d-a403-e96b0029c9fe'

resource vault 'Microsoft.KeyVault/vaults@2023-07-01' existing = {
  name: vaultName
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

// Elastic Premium reaches a database in a virtual network, and can be kept to
// one instance.
resource plan 'Microsoft.Web/serverfarms@2024-04-01' = {
  name: prefix
  location: location
  kind: 'elastic'
  sku: { tier: 'ElasticPremium', name: 'EP1' }
  properties: { reserved: true, maximumElasticWorkerCount: 2 }
}

resource app 'Microsoft.Web/sites@2024-04-01' = [for f in functions: {
  name: '${prefix}-${f}'
  location: location
  kind: 'functionapp,linux'
  identity: { type: 'SystemAssigned' }
  properties: {
    serverFarmId: plan.id
    httpsOnly: true
    virtualNetworkSubnetId: empty(subnetId) ? null : subnetId
    siteConfig: {
      // Key Vault has no compare-and-swap: one instance writes at a time.
      functionAppScaleLimit: 1
      minimumElasticInstanceCount: 1
      minTlsVersion: '1.2'
      ftpsState: 'Disabled'
      appSettings: [
        { name: 'FUNCTIONS_EXTENSION_VERSION', value: '~4' }
        { name: 'FUNCTIONS_WORKER_RUNTIME', value: 'custom' }
        { name: 'AzureWebJobsStorage__accountName', value: storage.name }
        // Read with the app's identity; a package is replaced by uploading it
        // and restarting the app.
        { name: 'WEBSITE_RUN_FROM_PACKAGE', value: '${storage.properties.primaryEndpoints.blob}${packages.name}/${f}.zip' }
        { name: 'WEBSITE_RUN_FROM_PACKAGE_BLOB_MI_RESOURCE_ID', value: 'SystemAssigned' }
        { name: 'AZURE_TOKEN_CREDENTIALS', value: 'ManagedIdentityCredential' }
        { name: 'KEYTURN_ROTATOR', value: rotator }
        { name: 'KEYTURN_SECRETS', value: secrets }
        { name: 'KEYTURN_MASTER', value: master }
        { name: 'KEYTURN_APIKEY', value: apikey }
        { name: 'KEYTURN_GATE_AFTER', value: gateAfter }
        { name: 'KEYTURN_VALIDITY', value: validity }
      ]
    }
  }
}]

// The host of a function keeps its timer there.
resource own 'Microsoft.Authorization/roleAssignments@2022-04-01' = [for (f, i) in functions: {
  name: guid(storage.id, f, blobOwner)
  scope: storage
  properties: {
    principalId: app[i].identity.principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', blobOwner)
  }
}]

// On the vault, since a secret's sibling has to be made: keep secrets that the
// functions have no business with in another vault.
resource write 'Microsoft.Authorization/roleAssignments@2022-04-01' = [for (f, i) in functions: {
  name: guid(vault.id, f, secretsOfficer)
  scope: vault
  properties: {
    principalId: app[i].identity.principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', secretsOfficer)
  }
}]

resource topic 'Microsoft.EventGrid/systemTopics@2024-06-01-preview' = {
  name: '${prefix}-${vaultName}'
  location: location
  identity: { type: 'SystemAssigned' }
  properties: {
    source: vault.id
    topicType: 'Microsoft.KeyVault.vaults'
  }
}

resource park 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(storage.id, topic.id, blobContributor)
  scope: storage
  properties: {
    principalId: topic.identity.principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', blobContributor)
  }
}

resource nearExpiry 'Microsoft.EventGrid/systemTopics/eventSubscriptions@2024-06-01-preview' = if (subscribe) {
  parent: topic
  name: 'keyturn-rotate'
  dependsOn: [park]
  properties: {
    eventDeliverySchema: 'CloudEventSchemaV1_0'
    filter: { includedEventTypes: ['Microsoft.KeyVault.SecretNearExpiry'] }
    destination: {
      endpointType: 'AzureFunction'
      properties: {
        resourceId: '${app[0].id}/functions/rotate'
        maxEventsPerBatch: 1
      }
    }
    retryPolicy: { eventTimeToLiveInMinutes: 1440, maxDeliveryAttempts: 30 }
    deadLetterWithResourceIdentity: {
      identity: { type: 'SystemAssigned' }
      deadLetterDestination: {
        endpointType: 'StorageBlob'
        properties: { resourceId: storage.id, blobContainerName: dead.name }
      }
    }
  }
}

output storage string = storage.name
output apps array = [for (f, i) in functions: app[i].name]
