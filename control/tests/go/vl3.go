package main

import (
	"context"
	"net"
	"os"

	"github.com/edwarnicke/genericsync"
	"github.com/networkservicemesh/api/pkg/api/ipam"
	"github.com/networkservicemesh/api/pkg/api/networkservice"
	kernelapi "github.com/networkservicemesh/api/pkg/api/networkservice/mechanisms/kernel"
	"github.com/networkservicemesh/api/pkg/api/networkservice/payload"
	"github.com/networkservicemesh/sdk/pkg/ipam/strictvl3ipam"
	"github.com/networkservicemesh/sdk/pkg/networkservice/chains/client"
	"github.com/networkservicemesh/sdk/pkg/networkservice/chains/endpoint"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/authorize"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/begin"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/mechanisms"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/mechanisms/kernel"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/mechanisms/sendfd"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/upstreamrefresh"
	"github.com/networkservicemesh/sdk/pkg/networkservice/connectioncontext/dnscontext/vl3dns"
	"github.com/networkservicemesh/sdk/pkg/networkservice/connectioncontext/ipcontext/vl3"
	"github.com/networkservicemesh/sdk/pkg/networkservice/connectioncontext/mtu/vl3mtu"
)

// runVL3 is an endpoint of a vL3 network with Go's elements, which routes nothing: each connection ends in an interface of its namespace.
// Its name server listens on port 53 of that namespace, at the first address of the prefix. With NSM_PREFIX_SERVER_URL empty the prefix
// is NSM_PREFIX. Commands: "peer NAME SERVICE" (asks another endpoint as vL3 endpoints do), "prefix PREFIX" (has another prefix from now
// on), "refuse", "accept".
func runVL3(ctx context.Context) error {
	self, err := newProcess(ctx)
	if err != nil {
		return err
	}
	network := &network{self: self, names: make(chan net.IP, 16), configs: new(genericsync.Map[string, []*networkservice.DNSConfig])}
	network.follow(ctx)
	watch := &watcher{}
	server := self.server()
	endpoint.NewServer(ctx, self.tokens,
		endpoint.WithName(text("NSM_NAME", "vL3-server")),
		endpoint.WithAuthorizeServer(authorize.NewServer()),
		endpoint.WithAdditionalFunctionality(
			watch,
			vl3dns.NewServer(ctx, network.names,
				vl3dns.WithDomainSchemes(text("NSM_DNS_TEMPLATES", "{{ index .Labels \"podName\" }}.{{ .NetworkService }}.")),
				vl3dns.WithConfigs(network.configs)),
			vl3mtu.NewServer(),
			strictvl3ipam.NewServer(ctx, vl3.NewServer, network.pools...),
			mechanisms.NewServer(map[string]networkservice.NetworkServiceServer{kernelapi.MECHANISM: kernel.NewServer()}),
			sendfd.NewServer(),
		)).Register(server)
	on := address("NSM_LISTEN_ON", "unix://"+os.TempDir()+"/listen.on")
	failed, err := serve(ctx, server, addresses("NSM_LISTEN_ON", on.String()))
	if err != nil {
		return err
	}
	registration := &registration{self: self, url: on.String()}
	if err := registration.register(ctx); err != nil {
		return err
	}
	emit("ready", fields{"listening": on.String()})
	peers := network.client(ctx)
	go commands(ctx, func(verb string, args []string) {
		switch verb {
		case "peer":
			go peer(ctx, peers, args[0], args[1])
		case "prefix":
			network.changed(0, args[0], nil)
			report(verb, nil)
		default:
			watch.command(verb)
		}
	})
	return wait(ctx, failed)
}

// network is what the sides of an endpoint share.
type network struct {
	self    *process
	pools   []*vl3.IPAM
	names   chan net.IP
	configs *genericsync.Map[string, []*networkservice.DNSConfig]
	own     net.IP
}

// follow takes prefixes from each server, or the one that was set.
func (n *network) follow(ctx context.Context) {
	servers := addresses("NSM_PREFIX_SERVER_URL", "")
	if len(servers) == 0 {
		n.pools = append(n.pools, new(vl3.IPAM))
		n.changed(0, text("NSM_PREFIX", "172.16.0.0/24"), nil)
		return
	}
	for place, server := range servers {
		n.pools = append(n.pools, new(vl3.IPAM))
		keeper := &prefixKeeper{self: n.self, server: server}
		go keeper.run(ctx, func(answer *ipam.PrefixResponse) { n.changed(place, answer.GetPrefix(), answer.GetExcludePrefixes()) })
	}
}

func (n *network) changed(place int, prefix string, excluded []string) {
	_, parsed, err := net.ParseCIDR(prefix)
	if err == nil {
		err = n.pools[place].Reset(prefix, excluded...)
	}
	if err != nil {
		emit("failed", fields{"error": err.Error()})
		return
	}
	if place == 0 {
		n.own = parsed.IP
		n.names <- parsed.IP
	}
	emit("prefix", fields{"place": place, "prefix": prefix, "excluded": excluded})
}

// client asks other endpoints of the network.
func (n *network) client(ctx context.Context) func() networkservice.NetworkServiceClient {
	return func() networkservice.NetworkServiceClient {
		elements := []networkservice.NetworkServiceClient{
			upstreamrefresh.NewClient(ctx, upstreamrefresh.WithLocalNotifications()),
			vl3mtu.NewClient(),
		}
		for _, pool := range n.pools {
			elements = append(elements, vl3.NewClient(ctx, pool))
		}
		elements = append(elements, vl3dns.NewClient(n.own, n.configs), told{}, kernel.NewClient(), sendfd.NewClient())
		return client.NewClient(ctx,
			client.WithClientURL(address("NSM_CONNECT_TO", "unix:///var/lib/networkservicemesh/nsm.io.sock")),
			client.WithName(text("NSM_NAME", "vL3-server")),
			client.WithAuthorizeClient(authorize.NewClient()),
			client.WithDialTimeout(duration("NSM_DIAL_TIMEOUT", "5s")),
			client.WithDialOptions(n.self.dialOptions(true)...),
			client.WithReselectFunc(begin.ReselectWithSameEndpointFunc),
			client.WithAdditionalFunctionality(elements...))
	}
}

// peer asks for a connection to another endpoint, and keeps it.
func peer(ctx context.Context, chain func() networkservice.NetworkServiceClient, name, service string) {
	ctx, cancel := context.WithTimeout(ctx, duration("NSM_REQUEST_TIMEOUT", "15s"))
	defer cancel()
	_, err := chain().Request(ctx, &networkservice.NetworkServiceRequest{
		Connection: &networkservice.Connection{
			NetworkServiceEndpointName: name,
			NetworkService:             service,
			Payload:                    payload.IP,
			Labels:                     labels("NSM_REQUEST_LABELS", ""),
		},
	})
	if err != nil {
		emit("peer-failed", fields{"name": name, "error": err.Error()})
		return
	}
	emit("peered", fields{"name": name})
}
