"""What the record promises, tried on copies cut at random."""
