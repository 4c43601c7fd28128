package eventbridge

import "testing"

// One operation is one event.
func BenchmarkDecode(b *testing.B) {
	all := notices(b)
	native := string(all["file/secret-label-updated"])
	for _, c := range []struct{ name, body string }{
		{"native", native},
		{"cloudtrail", string(all["file/ct-update-secret-version-stage"])},
		{"sqs", inSQSRecord(native)},
		{"sns in sqs", inSQSAnswer(inSNS(native))},
		{"record", record(b, all["file/ct-update-secret-version-stage"])},
	} {
		b.Run(c.name, func(b *testing.B) {
			body := []byte(c.body)
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				if es, err := DecodeAny(body, received); err != nil || len(es) != 1 {
					b.Fatalf("%v, %v", es, err)
				}
			}
		})
	}
}
