# Guests right after one another in processes of their own, as a launcher starts them.
gunyah A
guest <<'END'
echo up
END
for round in 1 2 3; do
    boot --accel gunyah
    expect_status 0
    expect_console '^up$'
done
left_nothing
