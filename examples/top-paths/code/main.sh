# Reads the access log of a web server from standard input: its busiest paths, and how many requests failed.
set -euo pipefail

gawk '{ hits[$7]++; bytes[$7] += $10; if ($9 >= 500) failed++ }
    END {
        for (path in hits) print path, hits[path], bytes[path]
        print failed + 0 >"/tmp/failed"
    }' | sort -k2,2nr -k1,1 | head -n 3 >/tmp/top

while read -r path requests bytes; do
    printf '%-20s %3d requests %7d bytes\n' "$path" "$requests" "$bytes"
done </tmp/top

jq -nR --argjson failed "$(</tmp/failed)" \
    '{failed: $failed, top: [inputs | split(" ") | {path: .[0], requests: (.[1] | tonumber)}]}' </tmp/top >"$JOB_OUTPUT_FILE"
