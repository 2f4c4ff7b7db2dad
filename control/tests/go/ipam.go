package main

import (
	"context"
	"net/url"
	"sync"
	"time"

	"github.com/networkservicemesh/api/pkg/api/ipam"
	"github.com/networkservicemesh/sdk/pkg/ipam/vl3ipam"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// runIPAM is the prefix service of a vL3 network: NSM_PREFIX, NSM_CLIENT_PREFIX_LEN. It tells what it gives.
func runIPAM(ctx context.Context) error {
	self, err := newProcess(ctx)
	if err != nil {
		return err
	}
	server := self.server()
	prefix, length := text("NSM_PREFIX", "169.254.0.0/16"), number("NSM_CLIENT_PREFIX_LEN", "24")
	ipam.RegisterIPAMServer(server, toldIPAM{vl3ipam.NewIPAMServer(prefix, uint8(length))})
	on := addresses("NSM_LISTEN_ON", "unix:///listen.on.socket")
	failed, err := serve(ctx, server, on)
	if err != nil {
		return err
	}
	emit("ready", fields{"listening": on[0].String()})
	return wait(ctx, failed)
}

// toldIPAM tells what its streams are answered ("given").
type toldIPAM struct{ ipam.IPAMServer }

func (t toldIPAM) ManagePrefixes(stream ipam.IPAM_ManagePrefixesServer) error {
	return t.IPAMServer.ManagePrefixes(toldStream{stream})
}

type toldStream struct{ ipam.IPAM_ManagePrefixesServer }

func (t toldStream) Send(answer *ipam.PrefixResponse) error {
	emit("given", fields{"answer": answer})
	return t.IPAM_ManagePrefixesServer.Send(answer)
}

// runPrefixes keeps a prefix of NSM_PREFIX_SERVER_URL as an endpoint does, and tells each difference ("prefix") and each stream's begin and
// end ("stream-began", "stream-ended"). Commands, to the stream that there is: "allocate [PREFIX [EXCLUDED]]", "delete PREFIX", "undefined".
func runPrefixes(ctx context.Context) error {
	self, err := newProcess(ctx)
	if err != nil {
		return err
	}
	keeper := &prefixKeeper{self: self, server: address("NSM_PREFIX_SERVER_URL", "")}
	go keeper.run(ctx, func(answer *ipam.PrefixResponse) { emit("prefix", fields{"answer": answer}) })
	commands(ctx, func(verb string, args []string) {
		request := new(ipam.PrefixRequest)
		if len(args) > 0 {
			request.Prefix = args[0]
		}
		if len(args) > 1 {
			request.ExcludePrefixes = args[1:]
		}
		switch verb {
		case "allocate":
			request.Type = ipam.Type_ALLOCATE
		case "delete":
			request.Type = ipam.Type_DELETE
		}
		report(verb, keeper.send(request))
	})
	return nil
}

// prefixKeeper has a prefix of one server: asked for once a stream, with the one that was there before.
type prefixKeeper struct {
	self   *process
	server *url.URL
	mu     sync.Mutex
	stream ipam.IPAM_ManagePrefixesClient
}

// run calls changed for each answer that differs from the one before, until ctx is done.
func (k *prefixKeeper) run(ctx context.Context, changed func(*ipam.PrefixResponse)) {
	var last *ipam.PrefixResponse
	for ctx.Err() == nil {
		err := k.once(ctx, last.GetPrefix(), func(answer *ipam.PrefixResponse) {
			if !proto.Equal(last, answer) {
				last = answer
				changed(answer)
			}
		})
		if ctx.Err() == nil {
			emit("stream-ended", fields{"code": status.Code(err).String(), "error": err.Error()})
			time.Sleep(20 * time.Millisecond)
		}
	}
}

func (k *prefixKeeper) once(ctx context.Context, previous string, answered func(*ipam.PrefixResponse)) error {
	connection, err := k.self.dial(ctx, k.server)
	if err != nil {
		return err
	}
	defer func() { _ = connection.Close() }()
	stream, err := ipam.NewIPAMClient(connection).ManagePrefixes(ctx)
	if err != nil {
		return err
	}
	k.mu.Lock()
	k.stream = stream
	k.mu.Unlock()
	if err := k.send(&ipam.PrefixRequest{Type: ipam.Type_ALLOCATE, Prefix: previous}); err != nil {
		return err
	}
	emit("stream-began", fields{"previous": previous})
	for {
		answer, err := stream.Recv()
		if err != nil {
			return err
		}
		answered(answer)
	}
}

func (k *prefixKeeper) send(request *ipam.PrefixRequest) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.stream.Send(request)
}
