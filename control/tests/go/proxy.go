package main

import (
	"context"
	"net"

	"github.com/networkservicemesh/sdk/pkg/networkservice/chains/nsmgrproxy"
	"github.com/networkservicemesh/sdk/pkg/registry/chains/proxydns"
)

// runProxyDNS leads to other domains' registries. NSM_DNS_SERVER is who is asked, in place of the system's servers: a test has its
// own.
func runProxyDNS(ctx context.Context) error {
	self, err := newProcess(ctx)
	if err != nil {
		return err
	}
	registry := proxydns.NewServer(ctx, self.tokens, resolver(),
		proxydns.WithDialOptions(self.dialOptions(true)...),
		proxydns.WithAuthorizeNSRegistryServer(authorizeServiceServer()),
		proxydns.WithAuthorizeNSERegistryServer(authorizeEndpointServer()),
		proxydns.WithAuthorizeNSRegistryClient(authorizeServiceClient()),
		proxydns.WithAuthorizeNSERegistryClient(authorizeEndpointClient()),
	)
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

// runManagerProxy is a domain's proxy for Requests, with the default policies of the registry and none for Requests, as the Go
// command has it.
func runManagerProxy(ctx context.Context) error {
	self, err := newProcess(ctx)
	if err != nil {
		return err
	}
	on := addresses("NSM_LISTEN_ON", "unix:///listen.on.socket")
	proxy := nsmgrproxy.NewServer(ctx,
		address("NSM_REGISTRY_URL", "tcp://registry:5002"),
		address("NSM_REGISTRY_PROXY_URL", "tcp://registry-proxy:5005"),
		self.tokens,
		nsmgrproxy.WithName(text("NSM_NAME", "nsmgr-proxy")),
		nsmgrproxy.WithListenOn(publicURL(on)),
		nsmgrproxy.WithMapIPFilePath(text("NSM_MAP_IP_FILE_PATH", "map-ip.yaml")),
		nsmgrproxy.WithDialTimeout(duration("NSM_DIAL_TIMEOUT", "750ms")),
		nsmgrproxy.WithDialOptions(self.dialOptions(true)...),
		nsmgrproxy.WithAuthorizeNSRegistryServer(authorizeServiceServer()),
		nsmgrproxy.WithAuthorizeNSRegistryClient(authorizeServiceClient()),
		nsmgrproxy.WithAuthorizeNSERegistryServer(authorizeEndpointServer()),
		nsmgrproxy.WithAuthorizeNSERegistryClient(authorizeEndpointClient()),
	)
	server := self.server()
	proxy.Register(server)
	failed, err := serve(ctx, server, on)
	if err != nil {
		return err
	}
	emit("ready", fields{"listening": on[0].String()})
	return wait(ctx, failed)
}

// resolver asks NSM_DNS_SERVER, an address with a port.
func resolver() *net.Resolver {
	server := text("NSM_DNS_SERVER", "")
	if server == "" {
		return net.DefaultResolver
	}
	return &net.Resolver{
		PreferGo: true,
		Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, server)
		},
	}
}
