# Counts the lines of a log by level, and finds the hour with most errors.
use strict;
use warnings;
use JSON::PP;

my (%levels, %hours, $other);
while (my $line = <>) {
    if ($line =~ /^\d{4}-\d\d-\d\dT(\d\d):\S+ (DEBUG|INFO|WARN|ERROR) /) {
        $levels{$2}++;
        $hours{$1}++ if $2 eq 'ERROR';
    } else {
        $other++;
    }
}
my ($worst) = sort { $hours{$b} <=> $hours{$a} || $a cmp $b } keys %hours;
printf "%-5s %3d\n", $_, $levels{$_} for sort keys %levels;
print "most errors in the hour from $worst:00\n";

open my $output, '>', $ENV{JOB_OUTPUT_FILE} or die "no output: $!";
print $output JSON::PP->new->canonical->encode({levels => \%levels, worst_hour => $worst, other => $other // 0});
close $output or die "no output: $!";
