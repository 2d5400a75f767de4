// Finds the shortest way between two places, along roads that have a length (Dijkstra).
using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;

static class Program
{
    static int Main()
    {
        string from = Environment.GetEnvironmentVariable("FROM"), to = Environment.GetEnvironmentVariable("TO");
        var roads = Read(Path.Combine(Environment.GetEnvironmentVariable("JOB_CODE_DIR"), "roads.txt"));
        var length = new Dictionary<string, int> { { from, 0 } };
        var before = new Dictionary<string, string>();
        var open = new SortedSet<Tuple<int, string>> { Tuple.Create(0, from) };
        while (open.Count > 0)
        {
            var place = open.Min;
            open.Remove(place);
            foreach (var road in roads[place.Item2])
            {
                int way = place.Item1 + road.Value, known;
                if (length.TryGetValue(road.Key, out known) && known <= way) continue;
                open.Remove(Tuple.Create(known, road.Key));
                open.Add(Tuple.Create(way, road.Key));
                length[road.Key] = way;
                before[road.Key] = place.Item2;
            }
        }
        if (!length.ContainsKey(to)) { Console.Error.WriteLine("no road leads from " + from + " to " + to); return 1; }
        var path = new List<string> { to };
        while (path[0] != from) path.Insert(0, before[path[0]]);
        Console.WriteLine(string.Join(" - ", path) + ": " + length[to] + " km");
        string places = string.Join(", ", path.Select(place => "\"" + place + "\""));
        File.WriteAllText(Environment.GetEnvironmentVariable("JOB_OUTPUT_FILE"),
            "{\"km\": " + length[to] + ", \"path\": [" + places + "]}");
        return 0;
    }

    static Dictionary<string, Dictionary<string, int>> Read(string file)
    {
        var roads = new Dictionary<string, Dictionary<string, int>>();
        foreach (string[] words in File.ReadLines(file).Select(line => line.Split(' ')))
            foreach (int end in new[] { 0, 1 })
            {
                if (!roads.ContainsKey(words[end])) roads[words[end]] = new Dictionary<string, int>();
                roads[words[end]][words[1 - end]] = int.Parse(words[2]);
            }
        return roads;
    }
}
