package pgserver

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

const (
	caName       = "ca.crt"
	certLifetime = 5 * 365 * 24 * time.Hour
	certRenew    = 30 * 24 * time.Hour // made anew with less than this left
)

// ensureCerts returns the authority's certificate, making it and the server's
// if they are missing or about to expire. The authority's key is not kept: a
// new server certificate means a new authority.
func ensureCerts(dir, data string, as *identity) ([]byte, error) {
	caFile, certFile, keyFile := filepath.Join(dir, caName), filepath.Join(data, "server.crt"), filepath.Join(data, "server.key")
	if ca, err := os.ReadFile(caFile); err == nil && exists(keyFile) && signed(ca, certFile) { //nolint:gosec // our own directory
		return ca, nil
	}
	ca, cert, key, err := makeCerts()
	if err != nil {
		return nil, fmt.Errorf("make certificates: %w", err)
	}
	// PostgreSQL wants the key readable by its own user only.
	err = errors.Join(
		writeFile(keyFile, key, 0o600), as.own(keyFile),
		writeFile(certFile, cert, 0o644), as.own(certFile),
		writeFile(caFile, ca, 0o644))
	return ca, err
}

// signed reports whether ca signed the certificate in file and it is good for
// a while.
func signed(ca []byte, file string) bool {
	b, err := os.ReadFile(file) //nolint:gosec // our own directory
	if err != nil {
		return false
	}
	block, _ := pem.Decode(b)
	pool := x509.NewCertPool()
	if block == nil || !pool.AppendCertsFromPEM(ca) {
		return false
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return false
	}
	_, err = cert.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: time.Now().Add(certRenew)})
	return err == nil
}

func makeCerts() (ca, cert, key []byte, err error) {
	now := time.Now()
	template := func(name string) (*x509.Certificate, error) {
		serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
		return &x509.Certificate{
			SerialNumber: serial, Subject: pkix.Name{CommonName: name},
			NotBefore: now.Add(-time.Hour), NotAfter: now.Add(certLifetime), BasicConstraintsValid: true,
		}, err
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, nil, err
	}
	caTmpl, err := template("keyturn private PostgreSQL CA")
	if err != nil {
		return nil, nil, nil, err
	}
	caTmpl.IsCA, caTmpl.KeyUsage = true, x509.KeyUsageCertSign
	caDER, err := x509.CreateCertificate(rand.Reader, caTmpl, caTmpl, caKey.Public(), caKey)
	if err != nil {
		return nil, nil, nil, err
	}
	srvKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, nil, err
	}
	srvTmpl, err := template("localhost")
	if err != nil {
		return nil, nil, nil, err
	}
	srvTmpl.KeyUsage, srvTmpl.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	srvTmpl.DNSNames, srvTmpl.IPAddresses = []string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	srvDER, err := x509.CreateCertificate(rand.Reader, srvTmpl, caTmpl, srvKey.Public(), caKey)
	if err != nil {
		return nil, nil, nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(srvKey)
	if err != nil {
		return nil, nil, nil, err
	}
	enc := func(kind string, der []byte) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	}
	return enc("CERTIFICATE", caDER), enc("CERTIFICATE", srvDER), enc("PRIVATE KEY", keyDER), nil
}
