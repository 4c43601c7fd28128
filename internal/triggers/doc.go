// Package triggers is what the functions on GCP and Azure have in common: a
// small HTTP server that a platform calls with a notice or by its timer, the
// rotation or sweep that follows, and the answer that decides whether the
// platform calls again.
//
// A main gives it what belongs to its cloud: the store, the decoder of its
// notices, and the answers that its platform wants. What a rotation does is
// decided in package rotators.
package triggers
