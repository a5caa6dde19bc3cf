// Package tpm lets a machine prove by its TPM 2.0 which machine it is, and lets the
// server judge that proof.
//
// The machine's side is a Device: it makes the agent's key in the TPM, where it
// stays (Key), says who the TPM is (Claim), and answers a Challenge (Prove). The
// server's side is a Verifier, which is pure but for its own random key: it makes
// challenges and judges what comes back.
//
// What is proven, with the commands of the TCG's TPM 2.0 Library, Part 3:
//
//   - The attestation key (AK) is in the same TPM as the endorsement key (EK):
//     credential activation, TPM2_MakeCredential done in software (Part 1, section
//     24) and TPM2_ActivateCredential.
//   - The machine's key is in that TPM and cannot leave it: TPM2_Certify by the AK.
//   - What the firmware and the boot loaders measured, and how often the TPM was
//     started: TPM2_Quote by the AK.
//
// Both statements carry a digest over the server's nonce, the server's CA and the
// machine's key, so none can be used again, elsewhere, or for another key. It is the
// hardware that is proven and not the software: whoever can start a system of
// their own on the machine has its TPM. The quote is for people to look at; nothing
// is decided on measurements.
//
// EKs are RSA-2048 of the TCG's default template (EK Credential Profile, L-1), which
// every TPM of a PC or server has; the manufacturer's certificate of it is not read.
package tpm
