# Entropy that gvmm-device serves to QEMU is none that the guest knew, and no zeros.
grep virtio_rng /sys/class/misc/hw_random/rng_current
for name in a b; do
    head -c 4096 /dev/hwrng >"$name"
    [ "$(wc -c <"$name")" = 4096 ] || fail "too few bytes"
    # What can be packed is not random.
    [ "$(gzip -c "$name" | wc -c)" -ge 4096 ] || fail "the bytes are not random"
done
cmp a b && fail "the same bytes twice"
true
