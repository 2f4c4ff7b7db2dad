package main

import (
	"context"
	"net"
	"net/url"

	"github.com/edwarnicke/genericsync"
	"github.com/networkservicemesh/sdk/pkg/networkservice/chains/nsmgr"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/authorize"
	"github.com/networkservicemesh/sdk/pkg/tools/listenonurl"
	authmonitor "github.com/networkservicemesh/sdk/pkg/tools/monitorconnection/authorize"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// runManager is the network service manager, with the default policies.
func runManager(ctx context.Context) error {
	self, err := newProcess(ctx)
	if err != nil {
		return err
	}
	on := addresses("NSM_LISTEN_ON", "unix:///var/lib/networkservicemesh/nsm.io.sock")
	owners := new(genericsync.Map[spiffeid.ID, *genericsync.Map[string, struct{}]])
	options := []nsmgr.Option{
		nsmgr.WithName(text("NSM_NAME", "nsmgr")),
		nsmgr.WithURL(publicURL(on).String()),
		nsmgr.WithForwarderServiceName(text("NSM_FORWARDER_NETWORK_SERVICE_NAME", "forwarder")),
		nsmgr.WithDialTimeout(duration("NSM_DIAL_TIMEOUT", "750ms")),
		nsmgr.WithDialOptions(self.dialOptions(false)...),
		nsmgr.WithAuthorizeServer(authorize.NewServer(authorize.WithSpiffeIDConnectionMap(owners))),
		nsmgr.WithAuthorizeMonitorConnectionServer(
			authmonitor.NewMonitorConnectionServer(authmonitor.WithSpiffeIDConnectionMap(owners))),
		nsmgr.WithAuthorizeNSRegistryServer(authorizeServiceServer()),
		nsmgr.WithAuthorizeNSRegistryClient(authorizeServiceClient()),
		nsmgr.WithAuthorizeNSERegistryServer(authorizeEndpointServer()),
		nsmgr.WithAuthorizeNSERegistryClient(authorizeEndpointClient()),
	}
	if registry := address("NSM_REGISTRY_URL", "tcp://localhost:5001"); registry.String() != "" {
		options = append(options, nsmgr.WithRegistry(registry))
	}
	manager := nsmgr.NewServer(ctx, self.tokens, options...)
	server := self.server()
	manager.Register(server)
	failed, err := serve(ctx, server, on)
	if err != nil {
		return err
	}
	emit("ready", fields{"listening": on[0].String()})
	return wait(ctx, failed)
}

// publicURL is where other nodes reach us: the first TCP address, or what there is.
func publicURL(on []*url.URL) *url.URL {
	public := on[0]
	for _, each := range on {
		if each.Scheme == "tcp" {
			public = each
			break
		}
	}
	if own, err := net.InterfaceAddrs(); err == nil {
		return listenonurl.GetPublicURL(own, public)
	}
	return public
}
