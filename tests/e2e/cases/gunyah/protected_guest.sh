# A protected guest, which needs no window for its console and clock, boots on every driver that lends memory.
guest <<'END'
nproc
dmesg | grep -i 'reserved mem'
END
for driver in 'A+ RM=production' B C; do
    # shellcheck disable=SC2086
    gunyah $driver
    boot --accel gunyah --cpus 2 --protected --swiotlb 16M --no-defaults --device pl011 --device pl031
    expect_status 0
    expect_console '^2$'
    left_nothing
done
