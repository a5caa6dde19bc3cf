package vm

// EmulatedCPU is the processor of a guest without KVM: one of AMD, so that the kernel
// needs no second page table per process, since each change of it empties the emulator's
// TLB; and without AVX, AVX2, BMI, AES and SMAP, whose emulation costs more than the
// code that programs have for older processors. QEMU 7.2 against "max", in Go: SHA-256
// takes 0.6 of the time, inflate 0.5, TLS with much data 0.4 (qemu-x86_64 -cpu).
const EmulatedCPU = "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+fsgsbase,+rdtscp,+pdpe1gb,+rdrand"

// KernelArgs are for kernels in guests without KVM.
//
//   - no_timer_check: a timer that a busy host makes late is none that the kernel shall
//     give up on.
//   - tsc=reliable: the kernel distrusts the time stamp counters of several processors
//     that do not say they are invariant, which QEMU's emulation cannot say in 7.2. Then
//     each look at the clock is a system call and an access to an emulated HPET under
//     QEMU's one lock; Go's scheduler looks thousands of times a second.
//   - highres=off: Go's runtime sleeps for 20 microseconds at a time, and every timer is
//     an emulated APIC's and a wake-up of QEMU's main loop; without, they wait for a tick.
//   - mitigations=off: retpolines defeat the emulator's chaining of code.
//   - systemd.default_timeout_start_sec: units are given a busy host's time.
func KernelArgs() []string {
	return []string{"console=ttyS0", "systemd.default_timeout_start_sec=900", "no_timer_check", "tsc=reliable", "highres=off", "mitigations=off"}
}
