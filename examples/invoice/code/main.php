<?php
// Turns an order into an invoice: a text to print in the log, and the amounts as output.
declare(strict_types=1);

$order = json_decode(file_get_contents(getenv('JOB_PAYLOAD_FILE')), true, flags: JSON_THROW_ON_ERROR);
$money = fn (int $cents): string => number_format($cents / 100, 2, '.', ' ');

printf("Invoice %s for %s\n\n", $order['number'], $order['customer']);
$net = 0;
foreach ($order['items'] as ['text' => $text, 'quantity' => $quantity, 'cents' => $cents]) {
    $net += $quantity * $cents;
    printf("%4d x %-24s %12s\n", $quantity, $text, $money($quantity * $cents));
}
$tax = (int) round($net * $order['tax_percent'] / 100);
printf("\n%-31s %12s\n", "net", $money($net));
printf("%-31s %12s\n", "tax, {$order['tax_percent']} %", $money($tax));
printf("%-31s %12s\n", "to pay", $money($net + $tax));

$output = ['number' => $order['number'], 'net' => $net, 'tax' => $tax, 'total' => $net + $tax];
file_put_contents(getenv('JOB_OUTPUT_FILE'), json_encode($output));
