package apikey

import (
	"encoding/json"
	"fmt"
	"mime"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"text/template"
	tmpl "text/template/parse"

	"github.com/keyturn/keyturn/fault"
)

// A call is a Request whose templates are compiled and have been tried.
type call struct {
	op      string // "create", for errors
	method  string
	host    string
	url     *template.Template
	headers map[string]*template.Template
	body    *template.Template // nil for none
	isJSON  bool               // the body
	reads   bool               // the answer is needed, not only its status
	expect  []int
	gone    []int
}

// data is what a template may use, by name.
type data map[string]any

const (
	adminField = "Admin"
	keyField   = "Key"
)

// compile makes a call of r. fields are the names that its templates may use
// beside Vars.
func compile(op string, r Request, c *Config, fields ...string) (*call, error) {
	bad := func(format string, args ...any) error {
		return fault.Newf(fault.Invalid, "apikey configuration", op+": "+format, args...)
	}
	out := &call{op: op, method: r.Method, expect: r.Expect, gone: r.Gone, headers: map[string]*template.Template{}}
	if !slices.Contains([]string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete}, r.Method) {
		return nil, bad("method %q; expected GET, POST, PUT, PATCH or DELETE", r.Method)
	}
	for _, s := range append(slices.Clone(r.Expect), r.Gone...) {
		if s < 200 || s > 599 || s >= 300 && s < 400 {
			return nil, bad("status %d; expected 200 to 599 without redirects, which are not followed", s)
		}
	}
	var err error
	if out.host, err = literalHost(r.URL, c.AllowPlaintext); err != nil {
		return nil, bad("url: %v", err)
	}
	if out.url, err = parseTemplate("url", r.URL, escapeURL); err != nil {
		return nil, bad("url: %v", err)
	}
	contentType := ""
	for name, text := range r.Headers {
		if !headerName.MatchString(name) {
			return nil, bad("header %q is not a name", name)
		}
		if out.headers[name], err = parseTemplate("header", text, escapeHeader); err != nil {
			return nil, bad("header %s: %v", name, err)
		}
		if http.CanonicalHeaderKey(name) == "Content-Type" {
			contentType = text
		}
	}
	if r.Body != "" {
		escape := escapeJSON
		switch media, _, err := mime.ParseMediaType(contentType); {
		case contentType == "":
			out.headers["Content-Type"] = template.Must(parseTemplate("header", "application/json", escapeHeader))
			out.isJSON = true
		case err == nil && media == "application/json":
			out.isJSON = true
		case err == nil && media == "application/x-www-form-urlencoded":
			escape = escapeURL
		default:
			return nil, bad("Content-Type %q; expected application/json or application/x-www-form-urlencoded", contentType)
		}
		if out.body, err = parseTemplate("body", r.Body, escape); err != nil {
			return nil, bad("body: %v", err)
		}
	}
	return out, out.try(c.Vars, fields)
}

// try renders everything with made-up values, so that a mistake shows at the
// start and not at the first rotation.
func (c *call) try(vars map[string]string, fields []string) error {
	d := data{"Vars": vars}
	for _, f := range fields {
		d[f] = "probe"
	}
	if _, _, _, err := c.render(d, true); err != nil {
		return err
	}
	// A credential in a URL ends up in the logs of every proxy.
	delete(d, adminField)
	delete(d, keyField)
	if _, err := execute(c.url, d); err != nil {
		return fault.Newf(fault.Invalid, "apikey configuration", "%s: url: .Admin and .Key may not be in a URL; put them in a header", c.op)
	}
	return nil
}

// render fills the templates in. Its errors say what the templates do wrong
// only if d is made up (probing): else they could quote a value.
func (c *call) render(d data, probing bool) (target string, headers http.Header, body string, err error) {
	bad := func(where string, err error) error {
		if probing {
			return fault.Newf(fault.Invalid, "apikey configuration", "%s: %s: %v", c.op, where, err)
		}
		return fault.Newf(fault.Invalid, "apikey: "+c.op, "the template of the %s cannot be filled in with these values (control characters, or a dot segment in a URL)", where)
	}
	if target, err = execute(c.url, d); err != nil {
		return "", nil, "", bad("url", err)
	}
	headers = http.Header{}
	for name, t := range c.headers {
		v, err := execute(t, d)
		if err != nil {
			return "", nil, "", bad("header "+name, err)
		}
		headers.Set(name, v)
	}
	if c.body == nil {
		return target, headers, "", nil
	}
	if body, err = execute(c.body, d); err != nil {
		return "", nil, "", bad("body", err)
	}
	if c.isJSON && !json.Valid([]byte(body)) {
		return "", nil, "", bad("body", fmt.Errorf("not valid JSON once filled in; an action yields a whole JSON value, so write {{.Name}} without quotes around it"))
	}
	return target, headers, body, nil
}

func execute(t *template.Template, d data) (string, error) {
	var b strings.Builder
	err := t.Execute(&b, map[string]any(d))
	return b.String(), err
}

var (
	headerName = regexp.MustCompile(`^[A-Za-z0-9-]{1,100}$`)
	hostStart  = regexp.MustCompile(`^(https?)://([^/?#{}\s@\\]+)(/|$)`)
)

// literalHost returns the host of a URL template and refuses one that a value
// could choose, that is reached without TLS, or that has credentials in it.
func literalHost(text string, plaintext bool) (string, error) {
	m := hostStart.FindStringSubmatch(text)
	if m == nil {
		return "", fmt.Errorf("%q; expected https://HOST/PATH, the host without template actions", text)
	}
	u, err := url.Parse(m[1] + "://" + m[2])
	if err != nil || u.Hostname() == "" {
		return "", fmt.Errorf("%q has no host that can be read", text)
	}
	ip := net.ParseIP(u.Hostname())
	loopback := u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
	if u.Scheme == "http" && !loopback && !plaintext {
		return "", fmt.Errorf("%q would send credentials without TLS; expected https, or allow_plaintext", text)
	}
	return u.Host, nil
}

// escaper is the name under which a template's own escaper is appended to
// each of its actions, as html/template does.
const escaper = "_escape"

func parseTemplate(name, text string, escape func(any) (string, error)) (*template.Template, error) {
	funcs := template.FuncMap{escaper: escape, "json": escapeJSON, "url": escapeURL}
	t, err := template.New(name).Option("missingkey=error").Funcs(funcs).Parse(text)
	if err != nil {
		return nil, err
	}
	if len(t.Templates()) > 1 {
		return nil, fmt.Errorf("define and block are not supported")
	}
	if t.Tree == nil {
		return t, nil
	}
	return t, appendEscaper(t.Root)
}

func appendEscaper(n tmpl.Node) error {
	switch n := n.(type) {
	case *tmpl.ListNode:
		if n == nil {
			return nil
		}
		for _, c := range n.Nodes {
			if err := appendEscaper(c); err != nil {
				return err
			}
		}
	case *tmpl.ActionNode:
		if len(n.Pipe.Decl) > 0 {
			return nil // an assignment yields nothing
		}
		n.Pipe.Cmds = append(n.Pipe.Cmds, &tmpl.CommandNode{
			NodeType: tmpl.NodeCommand, Pos: n.Pos, Args: []tmpl.Node{tmpl.NewIdentifier(escaper).SetPos(n.Pos)},
		})
	case *tmpl.IfNode:
		return both(n.List, n.ElseList)
	case *tmpl.WithNode:
		return both(n.List, n.ElseList)
	case *tmpl.RangeNode:
		return both(n.List, n.ElseList)
	case *tmpl.TemplateNode:
		return fmt.Errorf("template is not supported")
	}
	return nil
}

func both(a, b *tmpl.ListNode) error {
	if err := appendEscaper(a); err != nil {
		return err
	}
	return appendEscaper(b)
}

func escapeJSON(v any) (string, error) {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return "", fmt.Errorf("a value that JSON cannot hold")
	}
	return strings.TrimSuffix(b.String(), "\n"), nil
}

// escapeURL leaves only what is unreserved in every part of a URL.
// https://www.rfc-editor.org/rfc/rfc3986#section-2.3
func escapeURL(v any) (string, error) {
	s := fmt.Sprint(v)
	if s == "." || s == ".." {
		return "", fmt.Errorf("a value that is a dot segment")
	}
	// QueryEscape keeps exactly the unreserved and writes a space as +.
	return strings.ReplaceAll(url.QueryEscape(s), "+", "%20"), nil
}

func escapeHeader(v any) (string, error) {
	s := fmt.Sprint(v)
	if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return "", fmt.Errorf("a value with control characters")
	}
	return s, nil
}
