package main

import (
	"context"

	"github.com/networkservicemesh/sdk/pkg/registry/chains/memory"
)

// runRegistry is the registry in memory, with the default policies.
func runRegistry(ctx context.Context) error {
	self, err := newProcess(ctx)
	if err != nil {
		return err
	}
	options := []memory.Option{
		memory.WithDefaultExpiration(duration("NSM_EXPIRE_PERIOD", "1m")),
		memory.WithDialOptions(self.dialOptions(true)...),
		memory.WithAuthorizeNSRegistryServer(authorizeServiceServer()),
		memory.WithAuthorizeNSERegistryServer(authorizeEndpointServer()),
		memory.WithAuthorizeNSRegistryClient(authorizeServiceClient()),
		memory.WithAuthorizeNSERegistryClient(authorizeEndpointClient()),
	}
	if proxy := address("NSM_PROXY_REGISTRY_URL", ""); proxy.String() != "" {
		options = append(options, memory.WithProxyRegistryURL(proxy))
	}
	registry := memory.NewServer(ctx, self.tokens, options...)
	server := self.server()
	registry.Register(server)
	on := addresses("NSM_LISTEN_ON", "unix:///listen.on.socket")
	failed, err := serve(ctx, server, on)
	if err != nil {
		return err
	}
	emit("ready", fields{"listening": on[0].String()})
	return wait(ctx, failed)
}
