package rds

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/keyturn/keyturn/fault"
)

// api answers the two actions by what it holds, keyed by identifier.
type api struct {
	t                   *testing.T
	instances, clusters map[string]string
	status              int
	code                string
	calls               int
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.calls++
	if err := r.ParseForm(); err != nil || r.PostForm.Get("Version") != version {
		a.t.Errorf("form %v, err %v", r.PostForm, err)
	}
	if auth := r.Header.Get("Authorization"); !strings.HasPrefix(auth, "AWS4-HMAC-SHA256 ") || !strings.Contains(auth, "/us-east-1/rds/aws4_request") {
		a.t.Errorf("the request is not signed for RDS: %q", auth)
	}
	w.Header().Set("Content-Type", "text/xml")
	fail := func(status int, code string) {
		w.WriteHeader(status)
		_, _ = fmt.Fprintf(w, `<ErrorResponse xmlns="http://rds.amazonaws.com/doc/2014-10-31/"><Error><Type>Sender</Type><Code>%s</Code><Message>m</Message></Error></ErrorResponse>`, code)
	}
	if a.status != 0 {
		fail(a.status, a.code)
		return
	}
	switch action := r.PostForm.Get("Action"); action {
	case "DescribeDBInstances":
		if x, ok := a.instances[r.PostForm.Get("DBInstanceIdentifier")]; ok {
			_, _ = fmt.Fprintf(w, `<DescribeDBInstancesResponse xmlns="http://rds.amazonaws.com/doc/2014-10-31/"><DescribeDBInstancesResult><DBInstances><DBInstance>%s</DBInstance></DBInstances></DescribeDBInstancesResult></DescribeDBInstancesResponse>`, x)
			return
		}
		fail(http.StatusNotFound, "DBInstanceNotFound")
	case "DescribeDBClusters":
		if x, ok := a.clusters[r.PostForm.Get("DBClusterIdentifier")]; ok {
			_, _ = fmt.Fprintf(w, `<DescribeDBClustersResponse xmlns="http://rds.amazonaws.com/doc/2014-10-31/"><DescribeDBClustersResult><DBClusters><DBCluster>%s</DBCluster></DBClusters></DescribeDBClustersResult></DescribeDBClustersResponse>`, x)
			return
		}
		fail(http.StatusNotFound, "DBClusterNotFoundFault")
	default:
		fail(http.StatusBadRequest, "InvalidAction")
	}
}

func client(t *testing.T, a *api) *Client {
	t.Helper()
	a.t = t
	srv := httptest.NewServer(a)
	t.Cleanup(srv.Close)
	return New(aws.Config{Region: "us-east-1", Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
		return aws.Credentials{AccessKeyID: "AKIDEXAMPLE", SecretAccessKey: "example"}, nil
	})}, srv.URL)
}

const domain = ".cexample.us-east-1.rds.amazonaws.com"

func instance(id, source string) string {
	s := "<DBInstanceIdentifier>" + id + "</DBInstanceIdentifier><Engine>postgres</Engine><Endpoint><Address>" + id + domain + "</Address><Port>5433</Port></Endpoint>"
	if source != "" {
		s += "<ReadReplicaSourceDBInstanceIdentifier>" + source + "</ReadReplicaSourceDBInstanceIdentifier>"
	}
	return s
}

func world() *api {
	return &api{
		instances: map[string]string{
			"main": instance("main", ""), "copy": instance("copy", "main"), "other": instance("other", ""),
			"writer": instance("writer", ""), "reader": instance("reader", ""),
		},
		clusters: map[string]string{
			"fleet": "<DBClusterIdentifier>fleet</DBClusterIdentifier><Engine>aurora-postgresql</Engine><Endpoint>fleet.cluster-x" + domain +
				"</Endpoint><ReaderEndpoint>fleet.cluster-ro-x" + domain + "</ReaderEndpoint><Port>5432</Port><DBClusterMembers>" +
				"<DBClusterMember><DBInstanceIdentifier>writer</DBInstanceIdentifier><IsClusterWriter>true</IsClusterWriter></DBClusterMember>" +
				"<DBClusterMember><DBInstanceIdentifier>reader</DBInstanceIdentifier><IsClusterWriter>false</IsClusterWriter></DBClusterMember></DBClusterMembers>",
		},
	}
}

func TestReads(t *testing.T) {
	c := client(t, world())
	i, err := c.Instance(t.Context(), "copy")
	if err != nil || *i != (Instance{ID: "copy", Engine: "postgres", Host: "copy" + domain, Port: 5433, SourceID: "main"}) {
		t.Errorf("instance %+v, err %v", i, err)
	}
	k, err := c.Cluster(t.Context(), "fleet")
	if err != nil || k.Host != "fleet.cluster-x"+domain || k.Port != 5432 || len(k.Members) != 2 || !k.Members[0].Writer {
		t.Errorf("cluster %+v, err %v", k, err)
	}
	if _, err := c.Instance(t.Context(), "none"); !fault.Is(err, fault.NotFound) {
		t.Errorf("err %v; want NotFound", err)
	}
	if _, err := c.Cluster(t.Context(), ""); !fault.Is(err, fault.Invalid) {
		t.Errorf("err %v; want Invalid", err)
	}
}

func TestIsReplica(t *testing.T) {
	cluster := "fleet.cluster-x" + domain
	for _, c := range []struct {
		name, host, master string
		want               bool
	}{
		{"replica", "copy" + domain, "main" + domain, true},
		{"case and root", "COPY" + domain + ".", "main" + domain, true},
		{"the other way", "main" + domain, "copy" + domain, false},
		{"another instance", "other" + domain, "main" + domain, false},
		{"reader endpoint", "fleet.cluster-ro-x" + domain, cluster, true},
		{"reading member", "reader" + domain, cluster, true},
		{"writing member", "writer" + domain, cluster, false},
		{"instance of no cluster", "other" + domain, cluster, false},
		// A name whose first label is right, of somebody else's host.
		{"forged child", "copy.attacker.example.com", "main" + domain, false},
		{"forged reader", "reader.attacker.example.com", cluster, false},
		{"forged master", "copy" + domain, "main.attacker.example.com", false},
		{"unknown", "nothing" + domain, "main" + domain, false},
		{"address", "10.0.0.7", "10.0.0.8", false},
		{"bare name", "copy", "main", false},
		{"odd label", "a*b" + domain, "main" + domain, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := client(t, world()).IsReplica(t.Context(), c.host, c.master)
			if err != nil || got != c.want {
				t.Errorf("IsReplica(%s, %s) = %v, %v; want %v", c.host, c.master, got, err, c.want)
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		status int
		code   string
		want   fault.Kind
	}{
		{http.StatusForbidden, "AccessDenied", fault.Denied},
		{http.StatusForbidden, "ExpiredToken", fault.Denied},
		{http.StatusBadRequest, "Throttling", fault.Unavailable},
		{http.StatusServiceUnavailable, "", fault.Unavailable},
		{http.StatusBadRequest, "ValidationError", fault.Invalid},
		{http.StatusBadRequest, "NewInTheService", fault.Unknown},
	} {
		a := &api{status: c.status, code: c.code}
		// A refusal is never taken for "no replica".
		ok, err := client(t, a).IsReplica(t.Context(), "copy"+domain, "main"+domain)
		if ok || err == nil || fault.KindOf(err) != c.want || a.calls != 1 {
			t.Errorf("%d %s: %v, %v of kind %s after %d calls; want %s after one", c.status, c.code, ok, err, fault.KindOf(err), a.calls, c.want)
		}
	}
}

func TestNotXMLAndNobodyThere(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>hello")) }))
	c := client(t, world())
	c.endpoint = srv.URL
	if _, err := c.Instance(t.Context(), "main"); !fault.Is(err, fault.Unavailable) {
		t.Errorf("err %v; want Unavailable", err)
	}
	srv.Close()
	if _, err := c.Instance(t.Context(), "main"); !fault.Is(err, fault.Unavailable) || fault.ClassOf(err) != fault.ClassNetwork {
		t.Errorf("err %v; want Unavailable of class network", err)
	}
}
