# Adds up the sales of each region, in cents, and names its best product.
require "csv"
require "json"

totals = Hash.new { |all, region| all[region] = Hash.new(0) }
rows = 0
CSV.foreach(File.join(ENV.fetch("JOB_CODE_DIR"), "sales.csv"), headers: true) do |row|
  totals[row["region"]][row["product"]] += Integer(row["quantity"]) * (row["price"].to_r * 100).to_i
  rows += 1
end

report = totals.sort.to_h do |region, products|
  best, = products.max_by { |product, cents| [cents, product] }
  puts format("%-6s %10.2f  mostly %s", region, products.values.sum / 100.0, best)
  [region, { cents: products.values.sum, best: best }]
end
File.write(ENV.fetch("JOB_OUTPUT_FILE"), JSON.generate(rows: rows, regions: report))
