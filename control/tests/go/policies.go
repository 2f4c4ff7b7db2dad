package main

import (
	registryapi "github.com/networkservicemesh/api/pkg/api/registry"
	"github.com/networkservicemesh/sdk/pkg/registry/common/authorize"
)

// The registries' policies are defaults of the Go commands, not of the module: each call of a constructor below has its own set.

func serverPolicies() authorize.Option {
	return authorize.WithPolicies(list("NSM_REGISTRY_SERVER_POLICIES",
		"etc/nsm/opa/common/.*.rego,etc/nsm/opa/registry/.*.rego,etc/nsm/opa/server/.*.rego")...)
}

func clientPolicies() authorize.Option {
	return authorize.WithPolicies(list("NSM_REGISTRY_CLIENT_POLICIES",
		"etc/nsm/opa/common/.*.rego,etc/nsm/opa/registry/.*.rego,etc/nsm/opa/client/.*.rego")...)
}

func authorizeServiceServer() registryapi.NetworkServiceRegistryServer {
	return authorize.NewNetworkServiceRegistryServer(serverPolicies())
}

func authorizeEndpointServer() registryapi.NetworkServiceEndpointRegistryServer {
	return authorize.NewNetworkServiceEndpointRegistryServer(serverPolicies())
}

func authorizeServiceClient() registryapi.NetworkServiceRegistryClient {
	return authorize.NewNetworkServiceRegistryClient(clientPolicies())
}

func authorizeEndpointClient() registryapi.NetworkServiceEndpointRegistryClient {
	return authorize.NewNetworkServiceEndpointRegistryClient(clientPolicies())
}
