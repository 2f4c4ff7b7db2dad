// gopeers is the Go implementation of Network Service Mesh as a peer for tests: one program that is any role of a mesh, put
// together from the published modules. It tells what happens as JSON lines on standard output, and takes commands, one a line,
// on standard input. Its log goes to standard error.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sort"
	"strings"
	"syscall"
)

// roles are what this program can be. Each returns when ctx is done.
var roles = map[string]func(ctx context.Context) error{
	"forwarder":          runForwarder,
	"nsc":                runClient,
	"nse":                runEndpoint,
	"nsmgr":              runManager,
	"nsmgr-proxy":        runManagerProxy,
	"observe":            runObserver,
	"prefixes":           runPrefixes,
	"probe":              runProbe,
	"regclient":          runRegistryClient,
	"registry":           runRegistry,
	"registry-proxy-dns": runProxyDNS,
	"svid":               runSVID,
	"vl3":                runVL3,
	"vl3-ipam":           runIPAM,
	"workload":           runWorkload,
}

func main() {
	if len(os.Args) != 2 || roles[os.Args[1]] == nil {
		names := make([]string, 0, len(roles))
		for name := range roles {
			names = append(names, name)
		}
		sort.Strings(names)
		fmt.Fprintf(os.Stderr, "usage: gopeers %s\nsettings come from the environment\n", strings.Join(names, "|"))
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	ctx, err := withLog(ctx)
	if err == nil {
		err = roles[os.Args[1]](ctx)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "gopeers %s: %+v\n", os.Args[1], err)
		emit("failed", fields{"error": err.Error()})
		os.Exit(1)
	}
}
