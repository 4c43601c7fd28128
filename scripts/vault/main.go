// Command vault adapts a copy of the Vault module's source so that it builds
// outside its own repository. There Vault builds against the sdk in its tree;
// the module proxy has the sdk as last published, whose two signatures differ
// from what the module calls. Nothing that the tests look at is touched.
//
//	go run ./scripts/vault <directory of the copy>
package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
)

// An edit replaces the one occurrence of old in a file.
type edit struct{ file, old, new string }

// edits are for v1.21.4 with sdk v0.21.0: framework.Backend.ActivationFunc
// takes the feature's name there, and LockManager.RestorePolicy does not
// return the key's.
var edits = []edit{
	{
		"vault/identity_store.go",
		"ActivationFunc: iStore.activateDeduplication,",
		"ActivationFunc: func(ctx context.Context, req *logical.Request, _ string) error { return iStore.activateDeduplication(ctx, req) },",
	},
	{
		"vault/logical_system_activation_flags.go",
		"b.idStoreBackend.ActivationFunc(ctx, nil)",
		"b.idStoreBackend.ActivationFunc(ctx, nil, \"\")",
	},
	{
		"builtin/logical/transit/path_restore.go",
		"restoredKeyName, err := b.lm.RestorePolicy(ctx, req.Storage, keyName, backupB64, force)",
		"restoredKeyName, err := keyName, b.lm.RestorePolicy(ctx, req.Storage, keyName, backupB64, force)",
	},
}

// adapt makes every edit below dir. One that was made already is left as it
// is; a file that is neither as published nor as adapted is an error.
func adapt(dir string, edits []edit) error {
	for _, e := range edits {
		path := filepath.Join(dir, filepath.FromSlash(e.file))
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		switch found := bytes.Count(text, []byte(e.old)); {
		case bytes.Contains(text, []byte(e.new)):
			continue
		case found != 1:
			return fmt.Errorf("%s: %q is there %d times; want once: is this another version of Vault?", path, e.old, found)
		}
		if err := os.WriteFile(path, bytes.Replace(text, []byte(e.old), []byte(e.new), 1), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: vault <directory>")
		os.Exit(2)
	}
	if err := adapt(os.Args[1], edits); err != nil {
		fmt.Fprintln(os.Stderr, "vault:", err)
		os.Exit(1)
	}
}
