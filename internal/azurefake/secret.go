package azurefake

import (
	"cmp"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
)

// Limits of the service.
// https://learn.microsoft.com/azure/key-vault/general/about-keys-secrets-certificates
const (
	maxValue = 25600 // "maximum permitted length of 25600 characters"
	maxTags  = 15
	maxTag   = 256
	maxType  = 255
	nearing  = 30 * 24 * 3600 // seconds before exp that SecretNearExpiry comes
)

var nameForm = regexp.MustCompile(`^[0-9A-Za-z-]{1,127}$`)

// attributes are times in whole seconds, as on the wire.
type attributes struct {
	Enabled         *bool  `json:"enabled,omitempty"`
	NotBefore       *int64 `json:"nbf,omitempty"`
	Expires         *int64 `json:"exp,omitempty"`
	Created         int64  `json:"created,omitempty"`
	Updated         int64  `json:"updated,omitempty"`
	RecoveryLevel   string `json:"recoveryLevel,omitempty"`
	RecoverableDays int    `json:"recoverableDays,omitempty"`
}

type version struct {
	id          string
	value       string
	contentType *string
	tags        map[string]string
	enabled     bool
	nbf, exp    *int64
	created     int64
	updated     int64
}

// A secret keeps its versions in the order in which they were made.
type secret struct {
	name     string
	versions []*version
	deleted  int64 // when, or 0
	busy     int   // requests until a deletion or a recovery has ended
}

func (x *secret) newest() *version { return x.versions[len(x.versions)-1] }

func (x *secret) find(id string) *version {
	for _, v := range x.versions {
		if v.id == id {
			return v
		}
	}
	return nil
}

// A vault finds names whatever their case, and keeps the case in which a name
// was written first.
type vault struct {
	name          string
	secrets       map[string]*secret // by lower-case name
	deleted       map[string]*secret
	purgeProtects bool
}

func newVault(name string) *vault {
	return &vault{name: name, secrets: map[string]*secret{}, deleted: map[string]*secret{}}
}

func (v *vault) level() string {
	if v.purgeProtects {
		return "Recoverable"
	}
	return "Recoverable+Purgeable"
}

func (v *vault) host() string { return "https://" + v.name + "." + Domain }

// bundle is a version on the wire.
type bundle struct {
	Value       *string           `json:"value,omitempty"`
	ContentType *string           `json:"contentType,omitempty"`
	ID          string            `json:"id"`
	Attributes  attributes        `json:"attributes"`
	Tags        map[string]string `json:"tags,omitempty"`

	RecoveryID         string `json:"recoveryId,omitempty"`
	DeletedDate        int64  `json:"deletedDate,omitempty"`
	ScheduledPurgeDate int64  `json:"scheduledPurgeDate,omitempty"`
}

func (v *vault) bundle(x *secret, ver *version, value, withVersion bool) bundle {
	enabled := ver.enabled
	b := bundle{
		ID: v.host() + "/secrets/" + x.name, ContentType: ver.contentType, Tags: maps.Clone(ver.tags),
		Attributes: attributes{
			Enabled: &enabled, NotBefore: ver.nbf, Expires: ver.exp, Created: ver.created, Updated: ver.updated,
			RecoveryLevel: v.level(), RecoverableDays: 90,
		},
	}
	if withVersion {
		b.ID += "/" + ver.id
	}
	if value {
		b.Value = &ver.value
	}
	return b
}

func (v *vault) deletedBundle(x *secret) bundle {
	b := v.bundle(x, x.newest(), false, true)
	b.RecoveryID = v.host() + "/deletedsecrets/" + x.name
	b.DeletedDate, b.ScheduledPurgeDate = x.deleted, x.deleted+90*24*3600
	return b
}

func notFound(what string) error {
	return fail(http.StatusNotFound, "SecretNotFound", "", "A secret with (name/id) %s was not found in this key vault. If you recently deleted this secret you may be able to recover it using the correct recovery command.", what)
}

// lookup finds a secret that is not deleted. One that is being recovered is
// not there yet.
func (r *request) lookup() (*secret, error) {
	if !nameForm.MatchString(r.name) {
		return nil, badParameter("The request URI contains an invalid name: %s", r.name)
	}
	x := r.v.secrets[strings.ToLower(r.name)]
	if x == nil {
		return nil, notFound(r.name)
	}
	if x.busy > 0 {
		x.busy--
		return nil, notFound(r.name)
	}
	return x, nil
}

func badParameter(format string, args ...any) error {
	return fail(http.StatusBadRequest, "BadParameter", "", format, args...)
}

// get reads a version, the newest one if none is named. One that has expired,
// or is not valid yet, is read like any other: exp and nbf inform only.
// https://learn.microsoft.com/azure/key-vault/secrets/about-secrets
func (r *request) get() (any, int, error) {
	x, err := r.lookup()
	if err != nil {
		return nil, 0, err
	}
	v := x.newest()
	if r.version != "" {
		if v = x.find(r.version); v == nil {
			return nil, 0, notFound(r.name + "/" + r.version)
		}
	}
	if !v.enabled {
		return nil, 0, fail(http.StatusForbidden, "Forbidden", "SecretDisabled", "Operation get is not allowed on a disabled secret.")
	}
	return r.v.bundle(x, v, true, true), http.StatusOK, nil
}

// check says what of a body the service refuses.
func (r *request) check() error {
	if len(r.body.Tags) > maxTags {
		return badParameter("The number of tags %d exceeds the maximum of %d.", len(r.body.Tags), maxTags)
	}
	for k, v := range r.body.Tags {
		if len(k) > maxTag || len(v) > maxTag {
			return badParameter("A tag is beyond the maximum permitted length of %d characters.", maxTag)
		}
	}
	if t := r.body.ContentType; t != nil && len(*t) > maxType {
		return badParameter("contentType is beyond the maximum permitted length of %d characters.", maxType)
	}
	if a := r.body.Attributes; a != nil && a.Expires != nil && a.NotBefore != nil && *a.Expires <= *a.NotBefore {
		return badParameter("exp must be later than nbf.")
	}
	return nil
}

func (r *request) set() (any, int, error) {
	if !nameForm.MatchString(r.name) {
		return nil, 0, badParameter("The request URI contains an invalid name: %s", r.name)
	}
	if r.body.Value == nil {
		return nil, 0, badParameter("Property has invalid value")
	}
	if n := len(utf16.Encode([]rune(*r.body.Value))); n > maxValue {
		return nil, 0, badParameter("Secret is beyond the maximum permitted length of %d characters.", maxValue)
	}
	if err := r.check(); err != nil {
		return nil, 0, err
	}
	low := strings.ToLower(r.name)
	if x := r.v.deleted[low]; x != nil {
		if x.busy > 0 {
			x.busy--
			return nil, 0, fail(http.StatusConflict, "Conflict", "ObjectIsBeingDeleted", "Secret %s is currently being deleted and cannot be re-created; retry later.", r.name)
		}
		return nil, 0, fail(http.StatusConflict, "Conflict", "ObjectIsDeletedButRecoverable",
			"Secret %s is currently in a deleted but recoverable state, and its name cannot be reused; in this state, the secret can only be recovered or purged.", r.name)
	}
	x := r.v.secrets[low]
	switch {
	case x == nil:
		x = &secret{name: r.name}
		r.v.secrets[low] = x
	case x.busy > 0:
		x.busy--
		return nil, 0, fail(http.StatusConflict, "Conflict", "ObjectIsBeingRecovered", "Secret %s is currently being recovered and cannot be re-created; retry later.", r.name)
	}
	now := r.s.now().Unix()
	v := &version{
		id: hexID(), value: *r.body.Value, contentType: r.body.ContentType, tags: maps.Clone(r.body.Tags),
		enabled: true, created: now, updated: now,
	}
	if a := r.body.Attributes; a != nil {
		v.nbf, v.exp = a.NotBefore, a.Expires
		v.enabled = a.Enabled == nil || *a.Enabled
	}
	x.versions = append(x.versions, v)
	r.emit(x, v, newVersionCreated)
	// What expires within 30 days is announced together with its creation.
	// https://learn.microsoft.com/azure/key-vault/secrets/tutorial-rotation
	if v.exp != nil && *v.exp <= now+nearing {
		r.emit(x, v, nearExpiry)
	}
	return r.v.bundle(x, v, true, true), http.StatusOK, nil
}

// update changes what the body names and leaves the rest. Tags are replaced
// as a whole. It works on a disabled version, and answers without the value.
func (r *request) update() (any, int, error) {
	x, err := r.lookup()
	if err != nil {
		return nil, 0, err
	}
	v := x.newest()
	if r.version != "" {
		if v = x.find(r.version); v == nil {
			return nil, 0, notFound(r.name + "/" + r.version)
		}
	}
	if err := r.check(); err != nil {
		return nil, 0, err
	}
	if r.body.ContentType != nil {
		v.contentType = r.body.ContentType
	}
	if r.body.Tags != nil {
		v.tags = maps.Clone(r.body.Tags)
	}
	if a := r.body.Attributes; a != nil {
		if a.Enabled != nil {
			v.enabled = *a.Enabled
		}
		if a.Expires != nil {
			v.exp = a.Expires
		}
		if a.NotBefore != nil {
			v.nbf = a.NotBefore
		}
	}
	v.updated = r.s.now().Unix()
	return r.v.bundle(x, v, false, true), http.StatusOK, nil
}

func (r *request) del() (any, int, error) {
	x, err := r.lookup()
	if err != nil {
		return nil, 0, err
	}
	low := strings.ToLower(r.name)
	delete(r.v.secrets, low)
	x.deleted, x.busy = r.s.now().Unix(), r.s.lag
	r.v.deleted[low] = x
	return r.v.deletedBundle(x), http.StatusOK, nil
}

// gone finds a deleted secret; one whose deletion has not ended is not there.
func (r *request) gone() (*secret, error) {
	x := r.v.deleted[strings.ToLower(r.name)]
	if x != nil && x.busy > 0 {
		x.busy--
		x = nil
	}
	if x == nil {
		return nil, fail(http.StatusNotFound, "SecretNotFound", "", "Deleted Secret not found: %s", r.name)
	}
	return x, nil
}

func (r *request) getDeleted() (any, int, error) {
	x, err := r.gone()
	if err != nil {
		return nil, 0, err
	}
	return r.v.deletedBundle(x), http.StatusOK, nil
}

func (r *request) purge() (any, int, error) {
	if _, err := r.gone(); err != nil {
		return nil, 0, err
	}
	if r.v.purgeProtects {
		return nil, 0, fail(http.StatusForbidden, "Forbidden", "PurgeProtectionEnabled", "Operation \"purge\" is not allowed because purge protection is enabled for this vault.")
	}
	delete(r.v.deleted, strings.ToLower(r.name))
	return nil, http.StatusNoContent, nil
}

func (r *request) recover() (any, int, error) {
	x, err := r.gone()
	if err != nil {
		return nil, 0, err
	}
	low := strings.ToLower(r.name)
	delete(r.v.deleted, low)
	x.deleted, x.busy = 0, r.s.lag
	r.v.secrets[low] = x
	return r.v.bundle(x, x.newest(), false, true), http.StatusOK, nil
}

// versions come in the order of their ids, which are random: not in that of
// their creation. https://github.com/nagyesta/lowkey-vault/issues/467
func (r *request) versions() (any, int, error) {
	x, err := r.lookup()
	if err != nil {
		return nil, 0, err
	}
	var all []bundle
	for _, v := range x.versions {
		all = append(all, r.v.bundle(x, v, false, true))
	}
	return r.page("/secrets/"+x.name+"/versions", all)
}

// list tells the newest version of each secret, without the version's id.
func (r *request) list() (any, int, error) {
	var all []bundle
	for _, x := range r.v.secrets {
		if x.busy == 0 {
			all = append(all, r.v.bundle(x, x.newest(), false, false))
		}
	}
	return r.page("/secrets", all)
}

// page answers one page, after the id in the skip token. A vault may answer
// an empty page that has a link to the next.
func (r *request) page(path string, all []bundle) (any, int, error) {
	slices.SortFunc(all, func(a, b bundle) int { return cmp.Compare(a.ID, b.ID) })
	size := r.s.pageSize
	if q := r.query["maxresults"]; len(q) > 0 {
		n, err := strconv.Atoi(q[0])
		if err != nil || n < 1 || n > 25 {
			return nil, 0, badParameter("maxresults must be 1 to 25")
		}
		size = min(size, n)
	}
	if q := r.query["$skiptoken"]; len(q) > 0 {
		all = slices.DeleteFunc(all, func(b bundle) bool { return b.ID <= q[0] })
	}
	out := map[string]any{"nextLink": nil}
	if len(all) > size {
		all = all[:size]
		out["nextLink"] = r.base + path + "?api-version=7.4&$skiptoken=" + url.QueryEscape(all[size-1].ID) + "&maxresults=" + strconv.Itoa(size)
	}
	if all == nil {
		all = []bundle{}
	}
	out["value"] = all
	return out, http.StatusOK, nil
}
