package vaultaudit

const childEnv = "KEYTURN_VAULTAUDIT_CHILD"

func child(string) {}
