# Who is on duty in which week: main.tcl FIRST-DAY WEEKS PERSON...
set people [lassign $argv first weeks]
set day [clock scan $first -format %Y-%m-%d -gmt 1]

set rows {}
for {set week 0} {$week < $weeks} {incr week} {
    set person [lindex $people [expr {$week % [llength $people]}]]
    set from [clock format $day -format %Y-%m-%d -gmt 1]
    set day [clock add $day 1 week -gmt 1]
    set until [clock format [clock add $day -1 day -gmt 1] -format %Y-%m-%d -gmt 1]
    puts "week [clock format [clock scan $from -format %Y-%m-%d -gmt 1] -format %V -gmt 1]: $from to $until  $person"
    lappend rows [format {{"from": "%s", "until": "%s", "person": "%s"}} $from $until $person]
}

set output [open $env(JOB_OUTPUT_FILE) w]
puts $output "\[[join $rows ", "]\]"
close $output
