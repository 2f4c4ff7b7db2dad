package main

import (
	"context"
	"fmt"
	"net/url"
	"sync"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	kernelapi "github.com/networkservicemesh/api/pkg/api/networkservice/mechanisms/kernel"
	memifapi "github.com/networkservicemesh/api/pkg/api/networkservice/mechanisms/memif"
	kernelheal "github.com/networkservicemesh/sdk-kernel/pkg/kernel/tools/heal"
	"github.com/networkservicemesh/sdk/pkg/networkservice/chains/client"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/authorize"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/clientinfo"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/excludedprefixes"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/heal"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/mechanisms"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/mechanisms/kernel"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/mechanisms/sendfd"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/null"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/upstreamrefresh"
	"github.com/networkservicemesh/sdk/pkg/tools/nsurl"
)

// runClient asks for NSM_NETWORK_SERVICES and keeps them until it ends. With NSM_MANUAL=true it asks when told to.
// With NSM_MTU it asks for that MTU. Commands: "request URL", "refresh N", "close N", "monitor [ID]"; N is the place in the order of the Requests, from 0.
func runClient(ctx context.Context) error {
	self, err := newProcess(ctx)
	if err != nil {
		return err
	}
	// The chain outlives the signal, so that Close can be sent.
	chainCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	held := &held{client: newClientChain(chainCtx, self), connections: make(map[int]*networkservice.Connection)}
	emit("ready", nil)
	if !flag("NSM_MANUAL", "false") {
		for _, service := range addresses("NSM_NETWORK_SERVICES", "") {
			for !held.request(ctx, service) && ctx.Err() == nil {
			}
		}
	}
	commands(ctx, func(verb string, args []string) {
		switch verb {
		case "request":
			held.request(ctx, must(url.Parse(args[0])))
		case "refresh":
			held.refresh(ctx, place(args))
		case "close":
			held.close(ctx, place(args))
		case "monitor":
			go monitor(ctx, self, args)
		}
	})
	if !flag("NSM_LEAVE_OPEN", "false") {
		for each := range held.connections {
			held.close(chainCtx, each)
		}
	}
	return nil
}

func place(args []string) (n int) {
	if len(args) > 0 {
		_, err := fmt.Sscan(args[0], &n)
		n = must(n, err)
	}
	return n
}

func newClientChain(ctx context.Context, self *process) networkservice.NetworkServiceClient {
	options := []client.Option{
		client.WithClientURL(address("NSM_CONNECT_TO", "unix:///var/lib/networkservicemesh/nsm.io.sock")),
		client.WithName(text("NSM_NAME", "nsc")),
		client.WithDialTimeout(duration("NSM_DIAL_TIMEOUT", "5s")),
		client.WithDialOptions(self.dialOptions(true)...),
		client.WithAuthorizeClient(authorize.NewClient()),
		client.WithAdditionalFunctionality(
			clientinfo.NewClient(),
			upstreamrefresh.NewClient(ctx),
			mechanisms.NewClient(map[string]networkservice.NetworkServiceClient{
				kernelapi.MECHANISM: kernel.NewClient(),
				memifapi.MECHANISM:  null.NewClient(),
			}),
			sendfd.NewClient(),
			excludedprefixes.NewClient(),
		),
	}
	if flag("NSM_HEAL", "true") {
		healing := []heal.Option{
			heal.WithLivenessCheckInterval(duration("NSM_LIVENESS_CHECK_INTERVAL", "200ms")),
			heal.WithLivenessCheckTimeout(duration("NSM_LIVENESS_CHECK_TIMEOUT", "1s")),
		}
		if flag("NSM_LIVENESS_CHECK_ENABLED", "true") {
			healing = append(healing, heal.WithLivenessCheck(kernelheal.KernelLivenessCheck))
		}
		options = append(options, client.WithHealClient(heal.NewClient(ctx, healing...)))
	}
	if !flag("NSM_REFRESH", "true") {
		options = append(options, client.WithoutRefresh())
	}
	return client.NewClient(ctx, options...)
}

// held are the connections of this client.
type held struct {
	mu          sync.Mutex
	client      networkservice.NetworkServiceClient
	connections map[int]*networkservice.Connection
	next        int
}

func (h *held) request(ctx context.Context, service *url.URL) bool {
	parsed := (*nsurl.NSURL)(service)
	n := h.next
	connection := &networkservice.Connection{
		Id:             fmt.Sprintf("%s-%d", text("NSM_NAME", "nsc"), n),
		NetworkService: parsed.NetworkService(),
		Labels:         parsed.Labels(),
	}
	if mtu := number("NSM_MTU", "0"); mtu > 0 {
		connection.Context = &networkservice.ConnectionContext{MTU: uint32(mtu)}
	}
	if !h.ask(ctx, n, connection, []*networkservice.Mechanism{parsed.Mechanism()}) {
		return false
	}
	h.next++
	return true
}

func (h *held) refresh(ctx context.Context, n int) bool {
	h.mu.Lock()
	connection := h.connections[n].Clone()
	h.mu.Unlock()
	return h.ask(ctx, n, connection, nil)
}

func (h *held) ask(ctx context.Context, n int, connection *networkservice.Connection, preferences []*networkservice.Mechanism) bool {
	ctx, cancel := context.WithTimeout(ctx, duration("NSM_REQUEST_TIMEOUT", "15s"))
	defer cancel()
	answer, err := h.client.Request(ctx, &networkservice.NetworkServiceRequest{
		Connection: connection, MechanismPreferences: preferences,
	})
	if err != nil {
		emit("request-failed", fields{"place": n, "error": err.Error()})
		return false
	}
	h.mu.Lock()
	h.connections[n] = answer.Clone()
	h.mu.Unlock()
	emit("connected", fields{"place": n, "connection": answer})
	return true
}

func (h *held) close(ctx context.Context, n int) {
	ctx, cancel := context.WithTimeout(ctx, duration("NSM_REQUEST_TIMEOUT", "15s"))
	defer cancel()
	h.mu.Lock()
	connection := h.connections[n]
	delete(h.connections, n)
	h.mu.Unlock()
	if _, err := h.client.Close(ctx, connection); err != nil {
		emit("close-failed", fields{"place": n, "error": err.Error()})
		return
	}
	emit("closed", fields{"place": n})
}

// monitor tells each event of connections with a segment of this id, or of all.
func monitor(ctx context.Context, self *process, args []string) {
	selector := new(networkservice.MonitorScopeSelector)
	if len(args) > 0 {
		selector.PathSegments = []*networkservice.PathSegment{{Id: args[0]}}
	}
	connection, err := self.dial(ctx, address("NSM_CONNECT_TO", ""))
	if err != nil {
		emit("monitor-failed", fields{"error": err.Error()})
		return
	}
	stream, err := networkservice.NewMonitorConnectionClient(connection).MonitorConnections(ctx, selector)
	for err == nil {
		var event *networkservice.ConnectionEvent
		if event, err = stream.Recv(); err == nil {
			emit("monitored", fields{"message": event})
		}
	}
	emit("monitor-failed", fields{"error": err.Error()})
}
