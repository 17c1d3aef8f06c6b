# The doctor tells every generation apart on a machine that has KVM as well.
for generation in A B C; do
    gunyah $generation
    gvmm doctor
    expect_status 0
    expect_message "driver +generation $generation"
    expect_message 'state +usable'
done
