package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/federation"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// bundle is what we publish: a refresh hint of a second, and a sequence number that grows.
func (a *authority) bundle() *spiffebundle.Bundle {
	a.mu.Lock()
	defer a.mu.Unlock()
	certificates, _ := x509.ParseCertificates(a.believed())
	bundle := spiffebundle.FromX509Authorities(spiffeid.RequireTrustDomainFromString(a.domain), certificates)
	bundle.SetRefreshHint(time.Second)
	bundle.SetSequenceNumber(uint64(time.Now().UnixNano()))
	return bundle
}

// believed is our bundle as the Workload API has it. The caller holds the lock.
func (a *authority) believed() []byte {
	der := bytes.Clone(a.cert.Raw)
	if a.next != nil {
		der = append(der, a.next.cert.Raw...)
	}
	if a.old != nil {
		der = append(der, a.old.Raw...)
	}
	return der
}

// renew does one step to another authority, and sends new SVIDs.
func (a *authority) renew(step string) error {
	next, err := newAuthority(a.domain, a.ttl)
	if err != nil {
		return err
	}
	a.change(func(map[string][]byte) {
		switch step {
		case "announce":
			a.next = next
		case "activate":
			a.old, a.cert, a.key, a.next = a.cert, a.next.cert, a.next.key, nil
		case "retire":
			a.old = nil
		}
	})
	return nil
}

// source gives a bundle that may change to go-spiffe.
type source func() *spiffebundle.Bundle

func (s source) GetBundleForTrustDomain(spiffeid.TrustDomain) (*spiffebundle.Bundle, error) {
	return s(), nil
}

// publish serves our bundle as SPIRE does, by the profile https_spiffe as <domain>/server, or by https_web.
func publish(ctx context.Context, a *authority, profile, roots string) error {
	handler, err := federation.NewHandler(spiffeid.RequireTrustDomainFromString(a.domain), source(a.bundle))
	if err != nil {
		return err
	}
	config := &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		svid, err := a.issue("server")
		if err != nil {
			return nil, err
		}
		key, err := x509.ParsePKCS8PrivateKey(svid.X509SvidKey)
		return &tls.Certificate{Certificate: [][]byte{svid.X509Svid}, PrivateKey: key}, err
	}}
	if profile == "https_web" {
		certificate, err := webCertificate(roots)
		if err != nil {
			return err
		}
		config = &tls.Config{Certificates: []tls.Certificate{certificate}}
	}
	listener, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}
	go func() { <-ctx.Done(); _ = server.Close() }()
	go func() { _ = server.Serve(listener) }()
	emit("published", fields{"url": fmt.Sprintf("https://%s/bundle", listener.Addr())})
	return nil
}

// webCertificate makes a certificate of 127.0.0.1 and writes the authority that signed it.
func webCertificate(roots string) (tls.Certificate, error) {
	web, err := newAuthority("web.invalid", time.Hour)
	if err != nil {
		return tls.Certificate{}, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: web.cert.Raw})
	if err := os.WriteFile(roots, text, 0o600); err != nil {
		return tls.Certificate{}, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2),
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore:    time.Now().Add(-time.Minute),
		NotAfter:     time.Now().Add(time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, web.cert, &key.PublicKey, web.key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// follow believes what another domain publishes, as it changes. The first bundle is one that was federated before.
func follow(ctx context.Context, a *authority, domain, url, id string) error {
	trusted, err := spiffeid.TrustDomainFromString(domain)
	if err != nil {
		return err
	}
	endpoint, err := spiffeid.FromString(id)
	if err != nil {
		return err
	}
	auth := federation.WithSPIFFEAuth(believing{a}, endpoint)
	go func() { _ = federation.WatchBundle(ctx, trusted, url, &follower{a, trusted}, auth) }()
	return nil
}

// believing is what we believe of others now.
type believing struct{ authority *authority }

func (b believing) GetX509BundleForTrustDomain(domain spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	certificates, err := x509.ParseCertificates(b.authority.others()[domain.IDString()])
	return x509bundle.FromX509Authorities(domain, certificates), err
}

type follower struct {
	authority *authority
	domain    spiffeid.TrustDomain
}

func (f *follower) NextRefresh(hint time.Duration) time.Duration {
	return hint
}

func (f *follower) OnUpdate(bundle *spiffebundle.Bundle) {
	var der []byte
	for _, authority := range bundle.X509Authorities() {
		der = append(der, authority.Raw...)
	}
	f.authority.change(func(federated map[string][]byte) { federated[f.domain.IDString()] = der })
	hint, _ := bundle.RefreshHint()
	sequence, _ := bundle.SequenceNumber()
	emit("followed", fields{"authorities": len(bundle.X509Authorities()), "hint": hint.Seconds(), "sequence": sequence})
}

func (f *follower) OnError(err error) {
	emit("unfollowed", fields{"error": err.Error()})
}
