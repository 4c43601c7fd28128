// Package archtest holds the tests of the import arrows: which package may
// import which, and what each binary may link. The rules are those of
// ARCHITECTURE.md.
package archtest

import (
	"encoding/json"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/keyturn/keyturn/"

// roots define the vocabulary; they never import a leaf.
var roots = []string{"fault", "ref", "secrets", "rotators", "events", "notifier", "agent"}

// suites are run by the tests of every leaf of their root, and import no leaf.
var suites = []string{"secrets/storetest", "rotators/rotatortest"}

// shared says which packages below a root are helpers that the root's leaves
// may import.
var shared = []string{"secrets/sibling"}

type pkg struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

// list loads packages with go list; test imports do not count.
func list(t *testing.T, args ...string) []pkg {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list", "-json=ImportPath,Imports,Deps"}, args...)...)
	cmd.Dir = "../.."
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var pkgs []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
	if len(pkgs) == 0 {
		t.Fatal("go list found no package")
	}
	return pkgs
}

func rel(path string) (string, bool) { return strings.CutPrefix(path, module) }

// top is the first path element.
func top(p string) string { s, _, _ := strings.Cut(p, "/"); return s }

func isRoot(p string) bool  { return slices.Contains(roots, p) }
func isSuite(p string) bool { return slices.Contains(suites, p) }

// isLeaf reports whether p is below a root.
func isLeaf(p string) bool { return !isRoot(p) && slices.Contains(roots, top(p)) }

// forbidden says why from may not import to, or "".
func forbidden(from, to string) string {
	switch {
	case slices.Contains([]string{"functions", "cmd", "integration"}, top(to)):
		return "nobody imports functions, cmd or integration"
	case isRoot(from) && isLeaf(to):
		return "a root never imports a leaf"
	case isSuite(from) && isLeaf(to):
		return "a suite imports its root only"
	case isLeaf(from) && isLeaf(to) && !slices.Contains(shared, to) && !isSuite(from):
		return "leaves never import one another"
	case (top(from) == "events" || top(from) == "notifier") && top(to) == "secrets":
		return "nothing on the event path can hold a value"
	case isRoot(from) && top(to) == "internal":
		return "a root stands on other roots only"
	case from == "fault" || from == "ref" && to != "fault":
		return "the lowest roots import nothing above them"
	}
	return ""
}

func TestArrows(t *testing.T) {
	seen := 0
	for _, p := range list(t, "./...") {
		from, ok := rel(p.ImportPath)
		if !ok {
			continue
		}
		for _, imp := range p.Imports {
			if to, ok := rel(imp); ok {
				seen++
				if why := forbidden(from, to); why != "" {
					t.Errorf("%s imports %s: %s", from, to, why)
				}
			}
		}
	}
	if seen == 0 {
		t.Fatal("no import was checked")
	}
}

// The rules themselves refuse what they are meant to refuse.
func TestRulesCanFail(t *testing.T) {
	for _, c := range [][2]string{
		{"secrets", "secrets/awssm"}, {"secrets/awssm", "secrets/natskv"}, {"rotators/postgres", "secrets/awssm"},
		{"events/eventbridge", "secrets"}, {"notifier", "secrets"}, {"agent", "cmd/keyturn"},
		{"rotators/rotatortest", "secrets/memstore"}, {"ref", "secrets"}, {"secrets", "internal/testenv"},
	} {
		if forbidden(c[0], c[1]) == "" {
			t.Errorf("%s may import %s; want it forbidden", c[0], c[1])
		}
	}
	if why := forbidden("rotators", "secrets"); why != "" {
		t.Errorf("rotators may not import secrets: %s", why)
	}
}

// onlyImporters says who may import an SDK, so that it stays in its leaf.
var onlyImporters = map[string][]string{
	"github.com/aws/":            {"secrets/awssm", "events/putevents", "functions/aws", "notifier/sqs", "internal/awsfake", "internal/sqsfake", "internal/lambdarotate", "internal/funcnotify/lambdanotify", "cmd/keyturn", "integration"},
	"github.com/nats-io/nats.go": {"events/natsbus", "secrets/natskv", "cmd/keyturn", "internal/natslock", "internal/funcnotify", "internal/testenv"},
	"github.com/nats-io/nats-server": {
		"cmd/keyturn", "internal/testenv",
	},
	"github.com/jackc/pgx":       {"rotators/postgres", "agent/pgxauth", "cmd/keyturn", "internal/triggers/triggertest"},
	"github.com/hashicorp/vault": {"secrets/vaultkv", "internal/vaultfake", "cmd/keyturn", "integration"},
	"cloud.google.com/go/secretmanager": {
		"secrets/gcpsm", "functions/gcp", "internal/gcpfake", "cmd/keyturn", "integration",
	},
	"cloud.google.com/go/pubsub": {"notifier/pubsubpull", "cmd/keyturn", "integration"},
	"google.golang.org/grpc":     {"notifier/pubsubpull", "secrets/gcpsm", "functions/gcp", "internal/gcpfake", "cmd/keyturn", "integration"},
	"github.com/coreos/go-oidc":  {"internal/tokenauth"},
	"github.com/go-jose/":        {"internal/tokenauth"},
	"github.com/coder/websocket": {"notifier/vaultevents", "internal/vaultfake"},
	"github.com/prometheus/":     {"internal/telemetry"},
	"go.opentelemetry.io/":       {"internal/telemetry", "cmd/keyturn"},
	"github.com/nats-io/jwt":     {"internal/natsaccounts", "events/natsbus"},
	"github.com/Azure/":          {"secrets/azurekv", "functions/azure", "notifier/gridpull", "internal/azurefake", "internal/gridfake", "cmd/keyturn", "integration"},
}

func TestSDKsStayInTheirLeaves(t *testing.T) {
	for _, p := range list(t, "./...") {
		from, ok := rel(p.ImportPath)
		if !ok {
			continue
		}
		for _, imp := range p.Imports {
			for sdk, allowed := range onlyImporters {
				if strings.HasPrefix(imp, sdk) && !slices.ContainsFunc(allowed, func(a string) bool { return from == a || strings.HasPrefix(from, a+"/") }) {
					t.Errorf("%s imports %s; only %v may", from, imp, allowed)
				}
			}
		}
	}
}

// binaries says which modules each binary may link beyond the standard
// library and golang.org/x: a new one is a visible change.
var binaries = map[string][]string{
	"./functions/aws/rotate": {
		"github.com/keyturn/keyturn", "github.com/aws", "github.com/jackc", "github.com/xdg-go/stringprep",
	},
	"./functions/aws/retire": {
		"github.com/keyturn/keyturn", "github.com/aws", "github.com/jackc", "github.com/xdg-go/stringprep",
	},
	"./functions/aws/notify":   append([]string{"github.com/aws"}, notifyFunction...),
	"./functions/gcp/notify":   notifyFunction,
	"./functions/azure/notify": notifyFunction,
	"./functions/gcp/rotate":   gcpFunction,
	"./functions/gcp/retire":   gcpFunction,
	"./functions/azure/rotate": azureFunction,
	"./functions/azure/retire": azureFunction,
}

// What the official clients of the two clouds bring along: Google's tracing,
// and for Azure the sign-in of people at a browser.
var (
	gcpFunction = []string{
		"github.com/keyturn/keyturn", "github.com/jackc", "github.com/xdg-go/stringprep",
		"cloud.google.com/go/auth", "cloud.google.com/go/compute/metadata", "cloud.google.com/go/iam", "cloud.google.com/go/secretmanager",
		"google.golang.org", "github.com/google/s2a-go", "github.com/googleapis", "github.com/cespare/xxhash", "github.com/felixge/httpsnoop",
		"go.opentelemetry.io", "github.com/go-logr",
	}
	azureFunction = []string{
		"github.com/keyturn/keyturn", "github.com/jackc", "github.com/xdg-go/stringprep",
		"github.com/Azure/azure-sdk-for-go/sdk", "github.com/AzureAD/microsoft-authentication-library-for-go",
		"github.com/golang-jwt/jwt", "github.com/google/uuid", "github.com/kylelemons/godebug", "github.com/pkg/browser",
	}
)

// A function that notifies links the client of NATS and what that and package
// natsbus need, and no cloud's SDK; that of AWS reads its credentials by one.
var notifyFunction = []string{
	"github.com/keyturn/keyturn", "github.com/nats-io/nats.go", "github.com/nats-io/nkeys", "github.com/nats-io/nuid",
	"github.com/nats-io/jwt", "github.com/klauspost/compress", "github.com/fsnotify/fsnotify",
}

func TestBinariesLinkOnlyWhatTheyNeed(t *testing.T) {
	for binary, allowed := range binaries {
		p := list(t, binary)[0]
		for _, dep := range p.Deps {
			host, _, _ := strings.Cut(dep, "/")
			if !strings.Contains(host, ".") || host == "golang.org" || strings.HasPrefix(dep, "vendor/") {
				continue
			}
			if !slices.ContainsFunc(allowed, func(a string) bool { return dep == a || strings.HasPrefix(dep, a+"/") }) {
				t.Errorf("%s links %s, which is not on its list", binary, dep)
			}
		}
	}
}
