package main

import (
	"context"
	"encoding/json"
	"net"
	"os"
	"time"

	"github.com/golang/protobuf/ptypes/empty"
	registryapi "github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/grpc"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	kernelapi "github.com/networkservicemesh/api/pkg/api/networkservice/mechanisms/kernel"
	"github.com/networkservicemesh/api/pkg/api/networkservice/mechanisms/noop"
	"github.com/networkservicemesh/sdk/pkg/networkservice/chains/client"
	"github.com/networkservicemesh/sdk/pkg/networkservice/chains/endpoint"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/authorize"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/clienturl"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/connect"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/mechanisms"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/mechanisms/kernel"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/mechanisms/sendfd"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/mechanismtranslation"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/null"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/passthrough"
	"github.com/networkservicemesh/sdk/pkg/networkservice/connectioncontext/dnscontext"
	"github.com/networkservicemesh/sdk/pkg/networkservice/connectioncontext/mtu/vl3mtu"
	"github.com/networkservicemesh/sdk/pkg/networkservice/core/next"
	"github.com/networkservicemesh/sdk/pkg/networkservice/ipam/point2pointipam"
	registryclient "github.com/networkservicemesh/sdk/pkg/registry/chains/client"
	"github.com/networkservicemesh/sdk/pkg/registry/common/clientinfo"
	"github.com/networkservicemesh/sdk/pkg/registry/common/retry"
	registrysendfd "github.com/networkservicemesh/sdk/pkg/registry/common/sendfd"
)

// runEndpoint is an endpoint like the icmp responder. Commands: "refuse", "accept", "unregister", "register".
func runEndpoint(ctx context.Context) error {
	self, err := newProcess(ctx)
	if err != nil {
		return err
	}
	watch := &watcher{quiet: flag("NSM_QUIET", "false")}
	watch.refusing.Store(flag("NSM_REFUSE", "false"))
	server := self.server()
	elements := []networkservice.NetworkServiceServer{watch}
	if flag("NSM_PASS_THROUGH", "false") {
		elements = append(elements, passOn(ctx, self)...)
	} else {
		elements = append(elements, answer()...)
	}
	endpoint.NewServer(ctx, self.tokens,
		endpoint.WithName(text("NSM_NAME", "icmp-server")),
		endpoint.WithAuthorizeServer(authorize.NewServer()),
		endpoint.WithAdditionalFunctionality(elements...)).Register(server)

	on := address("NSM_LISTEN_ON", "unix://"+os.TempDir()+"/listen.on")
	registration := &registration{self: self, url: on.String()}
	if late := duration("NSM_LISTEN_DELAY", "0s"); late > 0 {
		// A socket that exists and does not answer yet: registered first, served later.
		squatter, err := net.Listen("unix", on.Path)
		if err != nil {
			return err
		}
		if err := registration.register(ctx); err != nil {
			return err
		}
		emit("registered", nil)
		time.Sleep(late)
		failed := make(chan error, 1)
		go func() { failed <- server.Serve(squatter) }()
		emit("ready", fields{"listening": on.String()})
		return wait(ctx, failed)
	}
	failed, err := serve(ctx, server, addresses("NSM_LISTEN_ON", on.String()))
	if err != nil {
		return err
	}
	if err := registration.register(ctx); err != nil {
		return err
	}
	emit("ready", fields{"listening": on.String()})
	go commands(ctx, func(verb string, _ []string) {
		switch verb {
		case "register":
			report(verb, registration.register(ctx))
		case "unregister":
			report(verb, registration.unregister(ctx))
		default:
			watch.command(verb)
		}
	})
	err = wait(ctx, failed)
	if flag("NSM_UNREGISTER_ITSELF", "false") {
		report("unregister", registration.unregister(context.Background()))
	}
	return err
}

// answer is the end of a connection. NSM_LEAST_MTU=true lowers all connections to the least MTU that one of them asked for.
func answer() (elements []networkservice.NetworkServiceServer) {
	if flag("NSM_LEAST_MTU", "false") {
		elements = append(elements, vl3mtu.NewServer())
	}
	var configs []*networkservice.DNSConfig
	if err := json.Unmarshal([]byte(text("NSM_DNS_CONFIGS", "[]")), &configs); err != nil {
		must(configs, err)
	}
	return append(elements,
		point2pointipam.NewServer(prefixes()...),
		dnscontext.NewServer(configs...),
		mechanisms.NewServer(map[string]networkservice.NetworkServiceServer{
			kernelapi.MECHANISM: kernel.NewServer(),
			noop.MECHANISM:      null.NewServer(),
		}),
		sendfd.NewServer())
}

// passOn is the middle of a connection: the same service is asked for with our labels. The client has our name, as in Go's commands:
// a segment of its own would have our token for the caller before it, where the policies look for one for itself.
func passOn(ctx context.Context, self *process) []networkservice.NetworkServiceServer {
	return []networkservice.NetworkServiceServer{
		mechanisms.NewServer(map[string]networkservice.NetworkServiceServer{kernelapi.MECHANISM: kernel.NewServer()}),
		sendfd.NewServer(),
		clienturl.NewServer(address("NSM_CONNECT_TO", "unix:///var/lib/networkservicemesh/nsm.io.sock")),
		connect.NewServer(client.NewClient(ctx,
			client.WithName(text("NSM_NAME", "icmp-server")),
			client.WithoutRefresh(),
			client.WithDialTimeout(duration("NSM_DIAL_TIMEOUT", "5s")),
			client.WithDialOptions(self.dialOptions(false)...),
			client.WithAdditionalFunctionality(
				mechanismtranslation.NewClient(),
				passthrough.NewClient(labels("NSM_LABELS", "")),
				ownPreference{},
				kernel.NewClient(),
				sendfd.NewClient()))),
	}
}

// ownPreference forgets the forwarder's preferences: they are about the interface toward the client.
type ownPreference struct{}

func (ownPreference) Request(
	ctx context.Context, request *networkservice.NetworkServiceRequest, opts ...grpc.CallOption,
) (*networkservice.Connection, error) {
	request.MechanismPreferences = nil
	return next.Client(ctx).Request(ctx, request, opts...)
}

func (ownPreference) Close(
	ctx context.Context, connection *networkservice.Connection, opts ...grpc.CallOption,
) (*empty.Empty, error) {
	return next.Client(ctx).Close(ctx, connection, opts...)
}

func report(verb string, err error) {
	if err != nil {
		emit("failed", fields{"command": verb, "error": err.Error()})
		return
	}
	emit("done", fields{"command": verb})
}

// prefixes are the ranges of NSM_CIDR_PREFIX.
func prefixes() (all []*net.IPNet) {
	for _, item := range list("NSM_CIDR_PREFIX", "169.254.0.0/16") {
		_, prefix, err := net.ParseCIDR(item)
		all = append(all, must(prefix, err))
	}
	return all
}

// registration keeps an endpoint's entry in the registry.
type registration struct {
	self   *process
	url    string
	client registryapi.NetworkServiceEndpointRegistryClient
	entry  *registryapi.NetworkServiceEndpoint
}

func (r *registration) register(ctx context.Context) error {
	connectTo := address("NSM_CONNECT_TO", "unix:///var/lib/networkservicemesh/nsm.io.sock")
	services := list("NSM_SERVICE_NAMES", "icmp-responder")
	if flag("NSM_REGISTER_SERVICE", "true") {
		client := registryclient.NewNetworkServiceRegistryClient(ctx,
			registryclient.WithClientURL(connectTo),
			registryclient.WithDialOptions(r.self.dialOptions(true)...),
			registryclient.WithAuthorizeNSRegistryClient(authorizeServiceClient()))
		for _, service := range services {
			entry := &registryapi.NetworkService{Name: service, Payload: text("NSM_PAYLOAD", "ETHERNET")}
			if _, err := client.Register(ctx, entry); err != nil {
				return err
			}
		}
	}
	if r.client == nil {
		r.client = registryclient.NewNetworkServiceEndpointRegistryClient(ctx,
			registryclient.WithClientURL(connectTo),
			registryclient.WithDialOptions(r.self.dialOptions(true)...),
			// A registration ends this much before its token: the time that its call may take.
			registryclient.WithNSERetryClient(retry.NewNetworkServiceEndpointRegistryClient(ctx,
				retry.WithTryTimeout(duration("NSM_TRY_TIMEOUT", "15s")))),
			registryclient.WithNSEAdditionalFunctionality(
				clientinfo.NewNetworkServiceEndpointRegistryClient(),
				registrysendfd.NewNetworkServiceEndpointRegistryClient()),
			registryclient.WithAuthorizeNSERegistryClient(authorizeEndpointClient()))
	}
	entry := &registryapi.NetworkServiceEndpoint{
		Name:                 text("NSM_NAME", "icmp-server"),
		NetworkServiceNames:  services,
		NetworkServiceLabels: make(map[string]*registryapi.NetworkServiceLabels),
		Url:                  r.url,
	}
	for _, service := range services {
		entry.NetworkServiceLabels[service] = &registryapi.NetworkServiceLabels{Labels: labels("NSM_LABELS", "")}
	}
	entry, err := r.client.Register(ctx, entry)
	r.entry = entry
	return err
}

func (r *registration) unregister(ctx context.Context) error {
	_, err := r.client.Unregister(ctx, r.entry)
	return err
}
