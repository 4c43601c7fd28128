// Package rds asks the RDS API the two questions that rotation with
// alternating users has: where the server of a master secret is that RDS
// manages, and whether one host is a replica of another. It speaks the query
// protocol itself: two calls and a handful of fields do not need a client
// that knows them all and is larger than the rest of the function.
// https://docs.aws.amazon.com/AmazonRDS/latest/APIReference/
package rds

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/keyturn/keyturn/fault"
)

const (
	op      = "rds"
	version = "2014-10-31"
	// maxAnswer bounds what is read of an answer about one instance or
	// cluster, which is some tens of KiB.
	maxAnswer = 4 << 20
	timeout   = 5 * time.Second
)

// A Client calls the RDS API of one region. It is safe for concurrent use and
// does not retry: a step that fails is repeated as a whole.
type Client struct {
	cfg      aws.Config
	endpoint string
	http     *http.Client
	signer   *v4.Signer
}

// New returns a Client with the region and credentials of cfg. endpoint may be
// empty for the region's own.
func New(cfg aws.Config, endpoint string) *Client {
	if endpoint == "" {
		suffix := "amazonaws.com"
		if strings.HasPrefix(cfg.Region, "cn-") {
			suffix = "amazonaws.com.cn"
		}
		endpoint = "https://rds." + cfg.Region + "." + suffix
	}
	return &Client{cfg: cfg, endpoint: endpoint, http: &http.Client{Timeout: timeout}, signer: v4.NewSigner()}
}

// An Instance is what is needed of a DB instance.
type Instance struct {
	ID       string `xml:"DBInstanceIdentifier"`
	Cluster  string `xml:"DBClusterIdentifier"`
	Engine   string `xml:"Engine"`
	Host     string `xml:"Endpoint>Address"`
	Port     int    `xml:"Endpoint>Port"`
	SourceID string `xml:"ReadReplicaSourceDBInstanceIdentifier"`
}

// A Cluster is what is needed of an Aurora or Multi-AZ cluster.
type Cluster struct {
	ID      string   `xml:"DBClusterIdentifier"`
	Engine  string   `xml:"Engine"`
	Host    string   `xml:"Endpoint"`
	Reader  string   `xml:"ReaderEndpoint"`
	Port    int      `xml:"Port"`
	Members []Member `xml:"DBClusterMembers>DBClusterMember"`
}

// A Member is an instance of a cluster.
type Member struct {
	ID     string `xml:"DBInstanceIdentifier"`
	Writer bool   `xml:"IsClusterWriter"`
}

// Instance returns the instance with the given identifier or ARN. One that
// does not exist is NotFound.
func (c *Client) Instance(ctx context.Context, id string) (*Instance, error) {
	var out struct {
		Instances []Instance `xml:"DescribeDBInstancesResult>DBInstances>DBInstance"`
	}
	if err := c.call(ctx, "DescribeDBInstances", "DBInstanceIdentifier", id, &out); err != nil {
		return nil, err
	}
	if len(out.Instances) != 1 {
		return nil, fault.Newf(fault.NotFound, op, "DB instance %q: found %d; expected one", id, len(out.Instances))
	}
	return &out.Instances[0], nil
}

// Cluster returns the cluster with the given identifier or ARN. One that does
// not exist is NotFound.
func (c *Client) Cluster(ctx context.Context, id string) (*Cluster, error) {
	var out struct {
		Clusters []Cluster `xml:"DescribeDBClustersResult>DBClusters>DBCluster"`
	}
	if err := c.call(ctx, "DescribeDBClusters", "DBClusterIdentifier", id, &out); err != nil {
		return nil, err
	}
	if len(out.Clusters) != 1 {
		return nil, fault.Newf(fault.NotFound, op, "DB cluster %q: found %d; expected one", id, len(out.Clusters))
	}
	return &out.Clusters[0], nil
}

// IsReplica reports whether host belongs to a read replica of the server at
// master: an instance that replicates from master's, the reader endpoint of
// the cluster whose writer endpoint master is, or a reading member of that
// cluster. Both names must be the ones that RDS gave, since a name of one's
// own says nothing about what is behind it; what RDS does not know is no
// replica. The errors are those of the API.
func (c *Client) IsReplica(ctx context.Context, host, master string) (bool, error) {
	if !plausible(host) || !plausible(master) {
		return false, nil
	}
	cluster, err := c.Cluster(ctx, label(master))
	switch {
	case err == nil && same(cluster.Host, master):
		if same(cluster.Reader, host) {
			return true, nil
		}
		for _, m := range cluster.Members {
			if m.Writer || m.ID != label(host) {
				continue
			}
			i, err := c.Instance(ctx, m.ID)
			if fault.Is(err, fault.NotFound) {
				return false, nil
			}
			return err == nil && same(i.Host, host), err
		}
		return false, nil
	case err != nil && !fault.Is(err, fault.NotFound):
		return false, err
	}
	i, err := c.Instance(ctx, label(host))
	if err != nil || !same(i.Host, host) || i.SourceID == "" {
		return false, notFoundIsNil(err)
	}
	source, err := c.Instance(ctx, i.SourceID)
	if err != nil {
		return false, notFoundIsNil(err)
	}
	return same(source.Host, master), nil
}

func notFoundIsNil(err error) error {
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

// label is the first label of a host's name, which is the identifier in a
// name that RDS gave.
func label(host string) string {
	l, _, _ := strings.Cut(host, ".")
	return strings.ToLower(l) // identifiers are lower case
}

// plausible keeps names from the API that no identifier can have.
func plausible(host string) bool {
	l := label(host)
	return l != host && l != "" && len(l) <= 63 && strings.Trim(l, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

func same(a, b string) bool {
	return a != "" && strings.EqualFold(strings.TrimSuffix(a, "."), strings.TrimSuffix(b, "."))
}

// call makes one request and reads its answer into out.
func (c *Client) call(ctx context.Context, action, key, id string, out any) error {
	if id == "" || len(id) > 256 {
		return fault.Newf(fault.Invalid, op, "%s: an identifier of %d characters; expected 1 to 256", action, len(id))
	}
	body := url.Values{"Action": {action}, "Version": {version}, key: {id}}.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.endpoint, strings.NewReader(body))
	if err != nil {
		return fault.New(fault.Invalid, op, err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
	if c.cfg.Credentials == nil {
		return &fault.Error{Kind: fault.Denied, Class: fault.ClassAuth, Op: op, Msg: "no AWS credentials"}
	}
	creds, err := c.cfg.Credentials.Retrieve(ctx)
	if err != nil {
		return &fault.Error{Kind: fault.Denied, Class: fault.ClassAuth, Op: op, Msg: "no AWS credentials", Err: err}
	}
	sum := sha256.Sum256([]byte(body))
	if err := c.signer.SignHTTP(ctx, creds, req, hex.EncodeToString(sum[:]), "rds", c.cfg.Region, time.Now()); err != nil {
		return fault.New(fault.Invalid, op, err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		e := &fault.Error{Kind: fault.Unavailable, Class: fault.ClassNetwork, Op: op, Msg: action, Err: err}
		if errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
			e.Class = fault.ClassTimeout
		}
		return e
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return &fault.Error{Kind: fault.Unavailable, Class: fault.ClassNetwork, Op: op, Msg: action, Err: err}
	}
	if resp.StatusCode != http.StatusOK {
		return refusal(action, id, resp.StatusCode, b)
	}
	if err := xml.Unmarshal(b, out); err != nil {
		return fault.Newf(fault.Unavailable, op, "%s: the answer is not the XML that the API gives; is the endpoint RDS?", action)
	}
	return nil
}

// refusal classifies an answer that is an error.
func refusal(action, id string, status int, body []byte) error {
	var r struct {
		Code string `xml:"Error>Code"`
	}
	_ = xml.Unmarshal(body, &r) // without a code the status decides
	e := &fault.Error{Op: op, Msg: fmt.Sprintf("%s of %q: %d %q", action, id, status, r.Code)}
	switch r.Code {
	case "DBInstanceNotFound", "DBInstanceNotFoundFault", "DBClusterNotFound", "DBClusterNotFoundFault":
		e.Kind = fault.NotFound
	case "Throttling", "ThrottlingException", "RequestLimitExceeded":
		e.Kind, e.Class = fault.Unavailable, fault.ClassQuota
	case "AccessDenied", "AccessDeniedException", "UnauthorizedOperation":
		e.Kind, e.Class = fault.Denied, fault.ClassPermission
		e.Msg += "; allow rds:" + action + " in the function's role"
	case "InvalidClientTokenId", "SignatureDoesNotMatch", "ExpiredToken", "MissingAuthenticationToken", "IncompleteSignature":
		e.Kind, e.Class = fault.Denied, fault.ClassAuth
	case "InvalidParameterValue", "ValidationError", "InvalidParameterCombination":
		e.Kind = fault.Invalid
	default:
		if status >= http.StatusInternalServerError {
			e.Kind, e.Class = fault.Unavailable, fault.ClassNetwork
		}
	}
	return e
}
