package postgres

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/keyturn/keyturn/fault"
)

// settings are a role's own parameters by database ("" is every database).
type settings map[string]map[string]string

func (s *session) settings(ctx context.Context, name string) (settings, error) {
	rows, err := s.rows(ctx, "read settings", `
SELECT coalesce(d.datname, ''), c.kv FROM pg_db_role_setting s
JOIN pg_roles r ON r.oid = s.setrole LEFT JOIN pg_database d ON d.oid = s.setdatabase, unnest(s.setconfig) AS c(kv)
WHERE r.rolname = $1`, name)
	if err != nil {
		return nil, err
	}
	out := settings{}
	for _, r := range rows {
		key, val, _ := strings.Cut(r[1], "=")
		if out[r[0]] == nil {
			out[r[0]] = map[string]string{}
		}
		out[r[0]][key] = val
	}
	return out, nil
}

// copySettings gives clone the settings of orig, since those of the role that
// signs in are used, and on top that its sessions act as orig.
func (s *session) copySettings(ctx context.Context, orig, clone string) error {
	want, err := s.settings(ctx, orig)
	if err != nil {
		return err
	}
	have, err := s.settings(ctx, clone)
	if err != nil {
		return err
	}
	actAs, err := s.mayActAs(ctx, orig, clone)
	if err != nil {
		return err
	}
	for _, m := range want {
		delete(m, "role")
		delete(m, "session_authorization")
	}
	if actAs {
		if want[""] == nil {
			want[""] = map[string]string{}
		}
		want[""]["role"] = orig
	}
	dbs := slices.Collect(maps.Keys(want))
	for db := range have {
		if want[db] == nil {
			dbs = append(dbs, db)
		}
	}
	slices.Sort(dbs)
	for _, db := range dbs {
		target := "ALTER ROLE " + ident(clone)
		if db != "" {
			target += " IN DATABASE " + ident(db)
		}
		for _, key := range slices.Sorted(maps.Keys(have[db])) {
			if _, keep := want[db][key]; !keep {
				if err := s.setting(ctx, clone, key, target+" RESET "+ident(key)); err != nil {
					return err
				}
			}
		}
		for _, key := range slices.Sorted(maps.Keys(want[db])) {
			if val, there := have[db][key]; there && val == want[db][key] {
				continue
			}
			val, err := s.settingValue(key, want[db][key])
			if err != nil {
				return err
			}
			if err := s.setting(ctx, clone, key, target+" SET "+ident(key)+" TO "+val); err != nil {
				return err
			}
		}
	}
	return nil
}

// setting runs one statement. A parameter that only a superuser may set is
// left out and logged: it is no reason not to rotate.
func (s *session) setting(ctx context.Context, clone, key, sql string) error {
	if key == "role" {
		return s.exec(ctx, "set role", sql)
	}
	if err := s.exec(ctx, "savepoint", "SAVEPOINT setting"); err != nil {
		return err
	}
	err := s.exec(ctx, "set parameter", sql)
	if err == nil {
		return s.exec(ctx, "release", "RELEASE SAVEPOINT setting")
	}
	if fault.ClassOf(err) != fault.ClassPermission {
		return err
	}
	s.b.o.Logger.WarnContext(ctx, "a setting is not carried over to the alternate user, since the master may not set it", "user", clone, "setting", key)
	return s.exec(ctx, "roll back", "ROLLBACK TO SAVEPOINT setting")
}

// listSettings take a list of names, each a literal of its own. The server
// keeps the same list.
// https://github.com/postgres/postgres/blob/REL_15_STABLE/src/bin/pg_dump/dumputils.c variable_is_guc_list_quote
var listSettings = []string{
	"local_preload_libraries", "search_path", "session_preload_libraries", "shared_preload_libraries", "temp_tablespaces", "unix_socket_directories",
}

func (s *session) settingValue(key, val string) (string, error) {
	if !slices.Contains(listSettings, strings.ToLower(key)) {
		return s.literal(val)
	}
	var quoted []string
	for _, name := range splitNames(val) {
		q, err := s.literal(name)
		if err != nil {
			return "", err
		}
		quoted = append(quoted, q)
	}
	if len(quoted) == 0 {
		return "''", nil
	}
	return strings.Join(quoted, ", "), nil
}

// splitNames splits "a, \"B c\"" as the server wrote it: names with special
// characters in double quotes, doubled inside.
func splitNames(list string) []string {
	var out []string
	for list = strings.TrimSpace(list); list != ""; {
		var name strings.Builder
		if list[0] == '"' {
			list = list[1:]
			for {
				before, after, found := strings.Cut(list, `"`)
				name.WriteString(before)
				list = after
				if !found || !strings.HasPrefix(list, `"`) {
					break
				}
				name.WriteByte('"')
				list = list[1:]
			}
		} else {
			i := strings.IndexByte(list, ',')
			if i < 0 {
				i = len(list)
			}
			name.WriteString(strings.TrimSpace(list[:i]))
			list = list[i:]
		}
		out = append(out, name.String())
		list = strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(list), ","))
	}
	return out
}

// mayActAs reports whether the sessions of clone can act as orig without
// losing what clone owns itself, as clones that were used without acting as
// the original do. It hands those objects to orig where it can: in this
// database, if the master may.
func (s *session) mayActAs(ctx context.Context, orig, clone string) (bool, error) {
	owned := func() (bool, error) {
		rows, err := s.rows(ctx, "read owned", `
SELECT 1 FROM pg_shdepend d JOIN pg_roles r ON r.oid = d.refobjid
WHERE d.refclassid = 'pg_authid'::regclass AND d.deptype = 'o' AND r.rolname = $1 LIMIT 1`, clone)
		return len(rows) > 0, err
	}
	some, err := owned()
	if err != nil || !some {
		return err == nil, err
	}
	if err := s.exec(ctx, "savepoint", "SAVEPOINT reassign; SET LOCAL lock_timeout = '2s'"); err != nil {
		return false, err
	}
	switch err := s.exec(ctx, "reassign owned", "REASSIGN OWNED BY "+ident(clone)+" TO "+ident(orig)); {
	case err == nil:
		if err := s.exec(ctx, "release", "RELEASE SAVEPOINT reassign"); err != nil {
			return false, err
		}
		if some, err = owned(); err != nil || !some {
			return err == nil, err
		}
	case fault.ClassOf(err) == fault.ClassPermission, fault.ClassOf(err) == fault.ClassConcurrency:
		// Not allowed, or in use by a long transaction: the next rotation
		// tries again.
		if err := s.exec(ctx, "roll back", "ROLLBACK TO SAVEPOINT reassign"); err != nil {
			return false, err
		}
	default:
		return false, err
	}
	s.b.o.Logger.WarnContext(ctx, "the alternate user owns objects that could not be handed to the original, so it does not act as the original; in each database run REASSIGN OWNED", "from", clone, "to", orig)
	return false, nil
}
