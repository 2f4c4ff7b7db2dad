package main

import (
	"context"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	kernelapi "github.com/networkservicemesh/api/pkg/api/networkservice/mechanisms/kernel"
	memifapi "github.com/networkservicemesh/api/pkg/api/networkservice/mechanisms/memif"
	registryapi "github.com/networkservicemesh/api/pkg/api/registry"
	"github.com/networkservicemesh/sdk-kernel/pkg/kernel/networkservice/connectioncontextkernel"
	"github.com/networkservicemesh/sdk-kernel/pkg/kernel/networkservice/inject"
	"github.com/networkservicemesh/sdk/pkg/networkservice/chains/client"
	"github.com/networkservicemesh/sdk/pkg/networkservice/chains/endpoint"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/authorize"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/connect"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/discover"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/mechanisms"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/mechanisms/recvfd"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/mechanisms/sendfd"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/mechanismtranslation"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/null"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/roundrobin"
	registryclient "github.com/networkservicemesh/sdk/pkg/registry/chains/client"
	registryrecvfd "github.com/networkservicemesh/sdk/pkg/registry/common/recvfd"
	registrysendfd "github.com/networkservicemesh/sdk/pkg/registry/common/sendfd"
)

// runForwarder joins kernel interfaces of one node by a veth pair, with sdk-kernel's elements. With NSM_DATAPLANE=none it joins
// nothing: what is measured then is the control plane. Commands: "refuse", "accept".
func runForwarder(ctx context.Context) error {
	self, err := newProcess(ctx)
	if err != nil {
		return err
	}
	name := text("NSM_NAME", "forwarder")
	connectTo := address("NSM_CONNECT_TO", "unix:///connect.to.socket")
	patience := duration("NSM_DIAL_TIMEOUT", "750ms")
	watch := &watcher{quiet: flag("NSM_QUIET", "false")}
	watch.refusing.Store(flag("NSM_REFUSE", "false"))
	services := registryclient.NewNetworkServiceRegistryClient(ctx,
		registryclient.WithClientURL(connectTo),
		registryclient.WithDialOptions(self.dialOptions(true)...),
		registryclient.WithAuthorizeNSRegistryClient(authorizeServiceClient()))
	endpoints := registryclient.NewNetworkServiceEndpointRegistryClient(ctx,
		registryclient.WithClientURL(connectTo),
		registryclient.WithDialOptions(self.dialOptions(true)...),
		registryclient.WithNSEAdditionalFunctionality(registryrecvfd.NewNetworkServiceEndpointRegistryClient()),
		registryclient.WithAuthorizeNSERegistryClient(authorizeEndpointClient()))
	// A forwarder has no client-side authorisation: with it, each Close is refused.
	toNext := func(elements ...networkservice.NetworkServiceClient) networkservice.NetworkServiceServer {
		return connect.NewServer(client.NewClient(ctx,
			client.WithName(name),
			client.WithoutRefresh(),
			client.WithDialTimeout(patience),
			client.WithDialOptions(self.dialOptions(true)...),
			client.WithAdditionalFunctionality(elements...)))
	}
	elements := []networkservice.NetworkServiceServer{
		watch,
		recvfd.NewServer(),
		sendfd.NewServer(),
		discover.NewServer(services, endpoints),
		roundrobin.NewServer(),
	}
	if text("NSM_DATAPLANE", "kernel") == "none" {
		elements = append(elements,
			mechanisms.NewServer(map[string]networkservice.NetworkServiceServer{
				kernelapi.MECHANISM: null.NewServer(),
				memifapi.MECHANISM:  null.NewServer(),
			}),
			toNext(mechanismtranslation.NewClient(), offerKernel{}, recvfd.NewClient(), sendfd.NewClient()))
	} else {
		elements = append(elements,
			mechanisms.NewServer(map[string]networkservice.NetworkServiceServer{kernelapi.MECHANISM: null.NewServer()}),
			vethServer{},
			connectioncontextkernel.NewServer(),
			inject.NewServer(),
			toNext(mechanismtranslation.NewClient(), offerKernel{}, vethClient{}, connectioncontextkernel.NewClient(),
				inject.NewClient(), recvfd.NewClient(), sendfd.NewClient()))
	}
	server := self.server()
	endpoint.NewServer(ctx, self.tokens,
		endpoint.WithName(name),
		endpoint.WithAuthorizeServer(authorize.NewServer()),
		endpoint.WithAdditionalFunctionality(elements...)).Register(server)
	on := address("NSM_LISTEN_ON", "unix:///listen.on.sock")
	failed, err := serve(ctx, server, addresses("NSM_LISTEN_ON", on.String()))
	if err != nil {
		return err
	}
	service := text("NSM_NSNAME", "forwarder")
	_, err = registryclient.NewNetworkServiceEndpointRegistryClient(ctx,
		registryclient.WithClientURL(connectTo),
		registryclient.WithDialTimeout(time.Second),
		registryclient.WithDialOptions(self.dialOptions(true)...),
		registryclient.WithNSEAdditionalFunctionality(registrysendfd.NewNetworkServiceEndpointRegistryClient()),
		registryclient.WithAuthorizeNSERegistryClient(authorizeEndpointClient()),
	).Register(ctx, &registryapi.NetworkServiceEndpoint{
		Name:                name,
		NetworkServiceNames: []string{service},
		NetworkServiceLabels: map[string]*registryapi.NetworkServiceLabels{
			service: {Labels: labels("NSM_LABELS", "p2p:true")},
		},
		Url: on.String(),
	})
	if err != nil {
		return err
	}
	emit("ready", fields{"listening": on.String()})
	go commands(ctx, func(verb string, _ []string) { watch.command(verb) })
	return wait(ctx, failed)
}
