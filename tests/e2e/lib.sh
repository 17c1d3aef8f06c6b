# Helpers of the end-to-end tests; sourced by run-cases in the outer guest, in a folder of the test's own.
#
#   guest <<'EOF'        the script that the next guest runs as its first process (else its root disk boots)
#   boot ARGUMENT...     runs gvmm with the kernel and the initrd; its exit code is in $status, the guest's
#                        console in console.log, gvmm's messages in gvmm.log
#   qemu ARGUMENT...     the same under Debian's QEMU with KVM
#   expect_status N      gvmm's exit code
#   expect_console RE    a line of the console matches (grep -E); no_console RE: none does
#   fail TEXT, skip TEXT
#
# $cmdline, $memory and $limit (seconds for one guest) may be changed before a boot.

cmdline='console=ttyAMA0 quiet panic=-1'
memory=256M
limit=120
initrd=$INITRD
status=

fail() {
    echo "failed: $*"
    exit 1
}

skip() {
    echo "skipped: $*"
    exit 77
}

guest() {
    rm -rf overlay
    mkdir -p overlay/tools
    cat >overlay/tools/test
    cp /bed/run-test overlay/start
    [ -d /bed/tools ] && cp /bed/tools/* overlay/tools/
    initrd=$PWD/initrd
    cp "$INITRD" "$initrd"
    (cd overlay && find . | cpio -o -H newc 2>/dev/null) >>"$initrd" || fail "cannot make the initrd"
}

boot() {
    run_guest "$GVMM" --kernel "$KERNEL" --initrd "$initrd" --memory "$memory" --cmdline "$cmdline" "$@"
}

qemu() {
    run_guest qemu-system-aarch64 -accel kvm -M virt,gic-version=3 -cpu host -display none -nic none \
        -serial stdio -no-reboot -m "$memory" -kernel "$KERNEL" -initrd "$initrd" -append "$cmdline" "$@"
}

# The console may be fed through the file descriptor 0 of the caller.
run_guest() {
    echo "+ $*"
    status=0
    timeout -s KILL "$limit" "$@" >console.raw 2>gvmm.log || status=$?
    tr -d '\r' <console.raw >console.log
    cat gvmm.log
    [ "$status" = 137 ] && echo "(killed after $limit s)"
    return 0
}

expect_status() {
    [ "$status" = "$1" ] || fail "exit code is $status, not $1"
}

expect_console() {
    grep -Eq -- "$1" console.log || fail "no line of the console matches: $1"
}

no_console() {
    ! grep -E -- "$1" console.log || fail "lines of the console match: $1"
}
