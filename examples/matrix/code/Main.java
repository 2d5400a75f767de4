import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Random;

/** Multiplies two square matrices, and checks the product with random vectors (Freivalds). */
public class Main {
    private static final long MODULUS = 1_000_003;

    public static void main(String[] arguments) throws Exception {
        int n = Integer.parseInt(arguments[0]);
        Random random = new Random(42);
        long[][] a = fill(n, random), b = fill(n, random);
        long[][] product = multiply(a, b);
        boolean right = true;
        for (int round = 0; round < 10; round++) {
            long[][] vector = new long[n][1];
            for (long[] row : vector) row[0] = random.nextInt(2);
            long[][] one = multiply(a, multiply(b, vector)), other = multiply(product, vector);
            for (int i = 0; i < n; i++) right &= one[i][0] == other[i][0];
        }
        long trace = 0;
        for (int i = 0; i < n; i++) trace = (trace + product[i][i]) % MODULUS;
        System.out.printf("%d x %d, trace %d modulo %d, %s%n", n, n, trace, MODULUS, right ? "right" : "wrong");
        String output = "{\"size\": %d, \"trace\": %d, \"right\": %b}".formatted(n, trace, right);
        Files.writeString(Path.of(System.getenv("JOB_OUTPUT_FILE")), output);
    }

    private static long[][] fill(int n, Random random) {
        long[][] matrix = new long[n][n];
        for (long[] row : matrix) for (int i = 0; i < n; i++) row[i] = random.nextInt((int) MODULUS);
        return matrix;
    }

    private static long[][] multiply(long[][] a, long[][] b) {
        long[][] product = new long[a.length][b[0].length];
        for (int i = 0; i < a.length; i++)
            for (int k = 0; k < b.length; k++)
                for (int j = 0; j < b[0].length; j++)
                    product[i][j] = (product[i][j] + a[i][k] * b[k][j]) % MODULUS;
        return product;
    }
}
