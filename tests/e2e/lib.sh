# Helpers of the end-to-end tests; sourced by run-cases in the outer guest, in a folder of the test's own.
#
#   guest <<'EOF'        the script that the next guest runs as its first process (else its root disk boots)
#   full_kernel MODULE...
#                        guests run Debian's kernel with all drivers from now on, with these modules; before `guest`
#   boot ARGUMENT...     runs gvmm with the kernel and the initrd; its exit code is in $status, the guest's
#                        console in console.log, gvmm's messages in gvmm.log
#   start ARGUMENT...    the same in the background, as process $vmm; `finish` waits for its end
#   await RE             waits until the guest's console has a line that matches
#   terminal STEP... -- ARGUMENT...
#                        the same on a terminal of its own: steps as in `guestio terminal --help`
#   gvmm ARGUMENT...     runs gvmm with just these arguments; exit code in $status, all it says in gvmm.log
#   qemu ARGUMENT...     boots the guest under Debian's QEMU with KVM
#   gunyah DRIVER [NAME=VALUE...]
#                        gvmm runs on a simulated Gunyah driver from now on, with settings of tests/gunyah-sim
#   left_nothing         the simulator found nothing open at the end
#   back_end PROGRAM ARGUMENT...
#                        a vhost-user back end in the background, as process $back_end
#   storage_daemon FILE  QEMU's, serving a disk image on disk.sock
#   uplink               gives the outer guest an address and a default route, as passt wants to find them
#   gone PROCESS         waits for the end of a process, which must be a success
#   disk FILE [MIB]      makes a root disk, or an empty disk of that size
#   expect_status N      the exit code was N
#   expect_console RE    a line of the console matches (grep -E); no_console RE: none does
#   expect_message RE    a line of gvmm's messages matches
#   expect_stats RE      a line of stats.json matches; stat_of COUNTER: the first counter of that name
#   fail TEXT, skip TEXT
#
# $cmdline, $memory, $limit (seconds for one guest) and $keyboard (file to type from) may be changed before a boot,
# $ahead (commands of busybox that a guest runs before its test) before `guest`.

cmdline='console=ttyAMA0 quiet panic=-1'
memory=256M
limit=120
keyboard=/dev/null
ahead=
initrd=$INITRD
status=
plugins=/gvmm/plugins
export PATH=/bed/passt:/bed/tools:$PATH

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
    { echo '#!/bin/busybox sh'; echo "$ahead"; cat /bed/run-test; } >overlay/start
    chmod +x overlay/start
    cp /bed/tools/* overlay/tools/
    initrd=$PWD/initrd
    cp "$INITRD" "$initrd"
    (cd overlay && find . | cpio -o -H newc 2>/dev/null) >>"$initrd" || fail "cannot make the initrd"
}

full_kernel() {
    for module; do
        grep -q "^$module " /bed/full/modules/order || skip "there is no module $module"
        cmdline="$cmdline modules=$module"
    done
    KERNEL=/bed/full/Image
    (cd /bed/full && find modules | cpio -o -H newc 2>/dev/null) >full.modules || fail "cannot make the initrd"
    cat "$INITRD" full.modules >full.initrd
    INITRD=$PWD/full.initrd
    initrd=$INITRD
}

disk() {
    if [ $# = 1 ]; then
        cp "$DISK" "$1"
        chmod u+w "$1"
    else
        rm -f "$1"
        truncate -s "$2M" "$1"
    fi
}

boot() {
    start "$@"
    finish
}

qemu() {
    launch qemu-system-aarch64 -accel kvm -M virt,gic-version=3 -cpu host -display none -nic none \
        -serial stdio -monitor none -no-reboot -m "$memory" -kernel "$KERNEL" -initrd "$initrd" -append "$cmdline" "$@"
    finish
}

start() {
    launch "$GVMM" --kernel "$KERNEL" --initrd "$initrd" --memory "$memory" --cmdline "$cmdline" "$@"
}

launch() {
    echo "+ $*"
    : >console.raw
    timeout -s KILL "$limit" "$@" <"$keyboard" >console.raw 2>gvmm.log &
    vmm=$!
}

back_end() {
    echo "+ $*"
    "$@" </dev/null >>back_end.log 2>&1 &
    back_end=$!
}

storage_daemon() {
    back_end qemu-storage-daemon --blockdev "driver=file,node-name=disk,filename=$1,locking=off" \
        --export type=vhost-user-blk,id=export,node-name=disk,writable=on,addr.type=unix,addr.path=disk.sock
}

uplink() {
    [ ! -e /sys/class/net/up0 ] || return 0
    tunctl -t up0 >/dev/null
    ip addr add 10.9.0.1/24 dev up0
    ip link set up0 up
    ip link set lo up
    ip route add default via 10.9.0.2 dev up0
}

gone() {
    wait "$1" || { cat back_end.log; fail "process $1 ended with status $?"; }
}

finish() {
    status=0
    wait "$vmm" || status=$?
    tr -d '\r' <console.raw >console.log
    cat gvmm.log
    [ "$status" != 137 ] || echo "(killed, after $limit s or by the test)"
}

await() {
    until grep -Eq -- "$1" console.raw; do
        kill -0 "$vmm" 2>/dev/null || { finish; fail "gvmm ended before the console showed: $1"; }
        usleep 50000
    done
}

terminal() {
    rm -f steps
    while [ "$1" != -- ]; do
        echo "$1" >>steps
        shift
    done
    shift
    set -- --log console.raw --timeout "$limit" -- \
        "$GVMM" --kernel "$KERNEL" --initrd "$initrd" --memory "$memory" --cmdline "$cmdline" "$@"
    # From the last to the first, each before those that are there.
    for number in $(seq "$(wc -l <steps)" -1 1); do
        set -- --then "$(sed -n "${number}p" steps)" "$@"
    done
    echo "+ guestio terminal $*"
    guestio terminal "$@" >terminal.log 2>&1 || { cat console.raw terminal.log; fail "the session on the terminal"; }
    cat terminal.log
    status=$(sed -n 's/^@exit //p' terminal.log)
    tr -d '\r' <console.raw >console.log
}

gunyah() {
    {
        echo '#!/bin/busybox sh'
        echo "export GUNYAH_SIM=$1 GUNYAH_SIM_REPORT=$PWD/report.json GUNYAH_SIM_LOG=on"
        shift
        for setting; do
            echo "export GUNYAH_SIM_$setting"
        done
        echo 'LD_PRELOAD=/bed/lib/libgunyah_sim.so exec /gvmm/gvmm "$@"'
    } >gunyah
    chmod +x gunyah
    GVMM=$PWD/gunyah
}

left_nothing() {
    cat report.json
    tr -d ' \n' <report.json | grep -q '"open":\[\],"problems":\[\]' || fail "something of the driver's is left open"
}

gvmm() {
    echo "+ gvmm $*"
    status=0
    timeout -s KILL "$limit" "$GVMM" "$@" </dev/null >gvmm.log 2>&1 || status=$?
    cat gvmm.log
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

expect_message() {
    grep -Eq -- "$1" gvmm.log || fail "no message of gvmm matches: $1"
}

expect_stats() {
    grep -Eq -- "$1" stats.json || { cat stats.json; fail "no line of the statistics matches: $1"; }
}

stat_of() {
    sed -nE "s/^ *\"$1\": ([0-9]+),?$/\1/p" stats.json | head -n 1
}
