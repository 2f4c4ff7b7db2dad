package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"errors"
	"fmt"
	"sort"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// runSVID fetches X.509-SVIDs from SPIFFE_ENDPOINT_SOCKET as a go-spiffe workload does, verifies each and tells it: one after
// another as they are rotated.
func runSVID(ctx context.Context) error {
	return workloadapi.WatchX509Context(ctx, svidWatcher{})
}

type svidWatcher struct{}

func (svidWatcher) OnX509ContextUpdate(update *workloadapi.X509Context) {
	svid := update.DefaultSVID()
	id, chains, err := x509svid.Verify(svid.Certificates, update.Bundles)
	if err == nil {
		err = usable(svid)
	}
	if err != nil {
		emit("svid-refused", fields{"error": err.Error()})
		return
	}
	leaf := svid.Certificates[0]
	emit("svid", fields{
		"id": id.String(), "serial": leaf.SerialNumber.String(), "chains": len(chains), "count": len(update.SVIDs),
		"bundles": domains(update), "not_before": leaf.NotBefore.Format(time.RFC3339), "not_after": leaf.NotAfter.Format(time.RFC3339),
	})
}

func (svidWatcher) OnX509ContextWatchError(err error) {
	if !errors.Is(err, context.Canceled) {
		emit("svid-failed", fields{"error": err.Error()})
	}
}

// usable says whether tokens can be signed with it: they are ES256.
func usable(svid *x509svid.SVID) error {
	key, ok := svid.PrivateKey.Public().(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return fmt.Errorf("the key is %T, tokens need ECDSA P-256", svid.PrivateKey.Public())
	}
	return nil
}

// domains are the trust domains that an update has bundles of.
func domains(update *workloadapi.X509Context) []string {
	names := []string{}
	for _, bundle := range update.Bundles.Bundles() {
		names = append(names, bundle.TrustDomain().Name())
	}
	sort.Strings(names)
	return names
}
