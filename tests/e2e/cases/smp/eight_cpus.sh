# A guest with --cpus 8 sees and uses eight.
guest <<'EOF'
nproc
EOF
boot --cpus 8
expect_status 0
expect_console '^8$'
